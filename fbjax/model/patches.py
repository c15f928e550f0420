"""Patch networks: an image becomes P patch features of size C, the "words" of the image (paper, section 3.2).

A *network* is a linen module ``images [N, H, W, 3] in 0..255 -> feature map [N, h, w, C]``. `PatchNetwork` cuts the
image around it in one of two geometries and knows nothing of what comes after. A further network (ResNet-50,
InceptionV3, ...) is a module and a line in `NETWORKS`.

Axis legend, here and everywhere: B examples, T text tokens, P patches, L = T + P, D width, N heads, H = D/N, F MLP
width, V vocabulary, C patch feature size, K tasks, Q queries, G gallery.
"""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

MOBILENET_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
MOBILENET_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class Pixels(nn.Module):
    """``[N, H, W, 3] -> [N, H/cell, W/cell, 3 cell^2]``: the pixels themselves in [-1, 1]; needs no weights."""

    cell: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        n, height, width, _ = images.shape
        cells = images.reshape(n, height // self.cell, self.cell, width // self.cell, self.cell, 3)
        return cells.swapaxes(2, 3).reshape(n, height // self.cell, width // self.cell, -1) / 127.5 - 1.0


class InferenceNorm(nn.Module):
    """Batch normalisation with its stored moments: ``(x - mean) / sqrt(variance + 1e-3) * gamma + beta``."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        gamma = self.param("gamma", nn.initializers.ones, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        mean = self.param("moving_mean", nn.initializers.zeros, shape)
        variance = self.param("moving_variance", nn.initializers.ones, shape)
        scale = gamma * jax.lax.rsqrt(variance + 1e-3)
        return x * scale + (beta - mean * scale)


class DepthwiseConv(nn.Module):
    """A 3x3 depthwise convolution with SAME padding as nine shifted products.

    XLA fuses them into one loop. With its grouped convolution the whole network took 3.9 times as long (median of 7 in
    turn; MobileNetV1 0.75 on 32 images of 128 pixels, 2 CPU cores).
    """

    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("depthwise_kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], 1))[..., 0]
        height, width, stride = x.shape[1], x.shape[2], self.stride
        out_h, out_w = -(-height // stride), -(-width // stride)
        pads = [max((out - 1) * stride + 3 - size, 0) for out, size in ((out_h, height), (out_w, width))]
        x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
        return sum(
            x[:, i : i + (out_h - 1) * stride + 1 : stride, j : j + (out_w - 1) * stride + 1 : stride] * kernel[i, j]
            for i in range(3)
            for j in range(3)
        )


class MobileNetV1(nn.Module):
    """MobileNetV1 without its classifier: ``[N, H, W, 3] -> [N, H/32, W/32, 1024 alpha]`` (Howard et al. 2017).

    RGB scaled to [-1, 1], ReLU6, TensorFlow's SAME padding; parameters carry the names of the Keras release.
    """

    alpha: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images / 127.5 - 1.0
        x = nn.Conv(int(32 * self.alpha), (3, 3), 2, padding="SAME", use_bias=False, name="conv1")(x)
        x = jax.nn.relu6(InferenceNorm(name="conv1_bn")(x))
        for i, (stride, channels) in enumerate(zip(MOBILENET_STRIDES, MOBILENET_CHANNELS, strict=True), start=1):
            x = DepthwiseConv(stride, name=f"conv_dw_{i}")(x)
            x = jax.nn.relu6(InferenceNorm(name=f"conv_dw_{i}_bn")(x))
            x = nn.Conv(int(channels * self.alpha), (1, 1), use_bias=False, name=f"conv_pw_{i}")(x)
            x = jax.nn.relu6(InferenceNorm(name=f"conv_pw_{i}_bn")(x))
        return x


@dataclasses.dataclass(frozen=True)
class NetworkKind:
    """How a network is built from its weights: ``build(weights, cell) -> module``, and pixels per cell of its map.

    `stride` None: the map's cells are whatever `cell` says. `classifier` names the layers of its file left unused.
    """

    build: Callable[[dict[str, np.ndarray], int], nn.Module]
    stride: int | None
    needs_weights: bool
    classifier: tuple[str, ...] = ()


NETWORKS = {
    "pixels": NetworkKind(lambda weights, cell: Pixels(cell), stride=None, needs_weights=False),
    "mobilenet_v1": NetworkKind(
        lambda weights, cell: MobileNetV1(alpha=weights["conv1/kernel"].shape[-1] / 32),
        stride=32,
        needs_weights=True,
        classifier=("conv_preds/",),
    ),
}


class PatchModule(nn.Module):
    """``images [B, S, S, 3] uint8 -> features [B, P, C]`` float32, (S / patch_size)^2 patches row by row.

    `isolated` (the paper): each patch alone, enlarged to `enlarge_to` pixels, through the network, average-pooled.
    `grid`: the cells of one pass's feature map, averaged where a patch touches several. Departs from the paper: a cell
    also sees its surroundings.
    `whole_image`: before them stands the mean of the whole image's feature map. Departs from the paper: a token that is
    no patch.
    """

    network: nn.Module
    geometry: str
    patch_size: int
    enlarge_to: int
    whole_image: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32)
        b, size = images.shape[:2]
        if self.geometry == "grid":
            feature_map = self.network(images)
            patches = average_cells(feature_map, size // self.patch_size)
            return self._with_whole(patches.reshape(b, -1, feature_map.shape[-1]), feature_map)
        side = size // self.patch_size
        patches = images.reshape(b, side, self.patch_size, side, self.patch_size, 3).swapaxes(2, 3)
        patches = patches.reshape(b * side * side, self.patch_size, self.patch_size, 3)
        if self.enlarge_to != self.patch_size:
            patches = jax.image.resize(patches, (len(patches), self.enlarge_to, self.enlarge_to, 3), "bilinear")
        patches = self.network(patches).mean(axis=(1, 2)).reshape(b, side * side, -1)
        return self._with_whole(patches, self.network(images) if self.whole_image else None)

    def _with_whole(self, patches: jax.Array, feature_map: jax.Array | None) -> jax.Array:
        if not self.whole_image:
            return patches
        return jnp.concatenate([feature_map.mean(axis=(1, 2))[:, None], patches], axis=1)


def average_cells(feature_map: jax.Array, side: int) -> jax.Array:
    """``[B, h, w, C] -> [B, side, side, C]``: each patch the mean of the cells that it touches."""
    for axis in (1, 2):
        size = feature_map.shape[axis]
        bounds = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        parts = [jax.lax.slice_in_dim(feature_map, *bound, axis=axis).mean(axis=axis) for bound in bounds]
        feature_map = jnp.stack(parts, axis=axis)
    return feature_map


@dataclasses.dataclass(frozen=True)
class PatchNetwork:
    """A patch network ready for use: ``apply(params, images [B, S, S, 3] uint8) -> [B, P, C]``.

    `num_patches` counts a token of the whole image too; `whole_image` says whether the first is one. `fingerprint`
    names network, weights and geometry: two networks that share it give the same features.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    num_patches: int
    feature_size: int
    whole_image: bool
    fingerprint: str

    def precomputed(self) -> "PatchNetwork":
        """The same features taken as they come, from a cache: ``apply`` is the identity and there are no parameters."""
        return dataclasses.replace(self, apply=lambda params, features: features, params={})


def build_patch_network(config, weights_path: str | Path | None = None) -> PatchNetwork:
    """The network that a `PatchConfig` describes, its weights read from `weights_path` (default: the config's path)."""
    if config.ready_made:
        return _ready_made(*config.ready_made)
    if config.network not in NETWORKS:
        raise ValueError(f"unknown patch network {config.network!r}; known: {', '.join(NETWORKS)}, features")
    kind = NETWORKS[config.network]
    weights = _read_weights(config.network, weights_path or config.weights) if kind.needs_weights else {}
    weights = {name: array for name, array in weights.items() if not name.startswith(kind.classifier)}
    cell = config.patch_size if config.geometry == "grid" else config.enlarge_to
    if config.geometry == "grid" and kind.stride and config.patch_size < kind.stride:
        raise ValueError(
            f"patch_size {config.patch_size} is too small for geometry 'grid' with {config.network}, "
            f"whose map has a cell every {kind.stride} pixels (use patch_size {kind.stride} or more)"
        )
    try:
        network = kind.build(weights, cell)
    except KeyError as error:
        raise ValueError(f"{weights_path or config.weights} is no {config.network} file: it lacks {error}") from None
    module = PatchModule(network, config.geometry, config.patch_size, config.enlarge_to, config.whole_image)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    features, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    params = _match_weights(variables.get("params", {}), weights, config.network)
    geometry = (config.network, config.geometry, config.image_size, config.patch_size, config.enlarge_to)
    geometry += ("whole image",) * config.whole_image
    digest = hashlib.sha256(repr(geometry).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return PatchNetwork(
        apply=lambda params, images: module.apply({"params": params}, images),
        params=params,
        num_patches=features.shape[1],
        feature_size=features.shape[2],
        whole_image=config.whole_image,
        fingerprint=f"{config.network}-{config.geometry}-{config.image_size}-{digest.hexdigest()[:12]}",
    )


def _ready_made(num_patches: int, feature_size: int) -> PatchNetwork:
    """No network: features made elsewhere, taken as they come."""
    return PatchNetwork(
        apply=lambda params, features: features,
        params={},
        num_patches=num_patches,
        feature_size=feature_size,
        whole_image=False,
        fingerprint=f"features-{num_patches}x{feature_size}",
    )


def count_live_dimensions(features: np.ndarray) -> int:
    """How many of the C dimensions of `features` [B, P, C] vary at all between patches."""
    return int((np.asarray(features, np.float32).reshape(-1, features.shape[-1]).std(axis=0) > 1e-4).sum())


def _read_weights(network: str, path: str | Path) -> dict[str, np.ndarray]:
    if not path:
        raise ValueError(f"patch network {network!r} needs weights: set config.patches.weights to an .npz file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no patch network weights at {path}: set config.patches.weights to an .npz file")
    try:
        with zipfile.ZipFile(path), np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file of {network} weights: {error}") from None


def _match_weights(expected, weights: dict[str, np.ndarray], network: str):
    """`weights` as the parameter tree `expected`; every missing, unexpected or misshapen array in one error."""
    wanted = flax.traverse_util.flatten_dict(expected, sep="/")
    named = {f"network/{name}": array for name, array in weights.items()}
    problems = [f"missing {name} {wanted[name].shape}" for name in sorted(wanted.keys() - named.keys())]
    problems += [f"unexpected {name} {named[name].shape}" for name in sorted(named.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {named[name].shape}, expected {wanted[name].shape}"
        for name in sorted(wanted.keys() & named.keys())
        if named[name].shape != wanted[name].shape
    ]
    if problems:
        raise ValueError(f"these are not {network} weights:\n  " + "\n  ".join(problems))
    return flax.traverse_util.unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in named.items()}, sep="/")
