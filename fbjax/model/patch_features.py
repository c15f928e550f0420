"""Patch networks: an image becomes P patch features of size C, the "words" of the image (paper, section 3.2).

A *network* is a linen module ``images [N, H, W, 3] in 0..255 -> feature map [N, h, w, C]``. `PatchNetwork` cuts the
image around it in one of two geometries and knows nothing of what comes after. A further network is a module in
`fbjax.model.backbones`, the names of its files in `names.py` there, and a line in `NETWORKS`.

Axis legend, here and everywhere: B examples, T text tokens, P patches, L = T + P, D width, N heads, H = D/N, F MLP
width, V vocabulary, C patch feature size, K tasks, Q queries, G gallery.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.core import resampling
from fbjax.model.backbones.registry import NETWORKS, NetworkKind, _load, _shapes
from fbjax.model.weights.files import FORMATS

PIXELS_AT_ONCE = 2**22  # of enlarged patches; what a network holds of them is some 200 bytes a pixel


def extract(network: Callable[[jax.Array], jax.Array], config, images: jax.Array) -> jax.Array:
    """``images [B, S, S, 3] uint8 -> features [B, P, C]`` float32, (S / patch_size)^2 patches row by row.

    `per_patch` (the paper): each patch alone, enlarged to `patch_input_size` pixels, through the network,
    average-pooled. `feature_map`: the cells of one pass's feature map, averaged where a patch touches several. Departs
    from the paper: a cell also sees its surroundings.
    `whole_image`: before them stands the mean of the whole image's feature map. Departs from the paper: a token that is
    no patch.
    """
    images = images.astype(jnp.float32)
    side = images.shape[1] // config.patch_size
    feature_map = network(images) if config.geometry == "feature_map" or config.whole_image else None
    if config.geometry == "feature_map":
        patches = average_cells(feature_map, side).reshape(images.shape[0], side * side, -1)
    else:
        patches = per_patch_features(network, images, config.patch_size, config.patch_input_size)
    if not config.whole_image:
        return patches
    return jnp.concatenate([feature_map.mean(axis=(1, 2))[:, None], patches], axis=1)


def per_patch_features(
    network: Callable[[jax.Array], jax.Array], images: jax.Array, patch_size: int, patch_input_size: int
) -> jax.Array:
    """``[B, S, S, 3] -> [B, P, C]``, so many patches of each image at a time as `PIXELS_AT_ONCE` allows."""
    b, side = len(images), images.shape[1] // patch_size
    patches = images.reshape(b, side, patch_size, side, patch_size, 3).swapaxes(2, 3)
    at_once = max(n for n in _divisors(side * side) if n == 1 or n * b * patch_input_size**2 <= PIXELS_AT_ONCE)
    weights = resampling.weights(patch_size, patch_input_size)
    turns = patches.reshape(b, -1, at_once, patch_size, patch_size, 3).swapaxes(0, 1)

    def features(patches):
        patches = patches.reshape(b * at_once, patch_size, patch_size, 3)
        if patch_input_size != patch_size:
            patches = jnp.einsum("rh,cw,bhwk->brck", weights, weights, patches, precision="highest")
        return network(patches).mean(axis=(1, 2)).reshape(b, at_once, -1)

    found = features(turns[0])[None] if len(turns) == 1 else jax.lax.map(features, turns)
    return found.swapaxes(0, 1).reshape(b, side * side, -1)


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
    kind = _kind(config)
    if kind.needs_weights:
        network, weights = _load(config.network, weights_path or config.weights)
    else:
        cell = config.patch_size if config.geometry == "feature_map" else config.patch_input_size
        network, weights = kind.build({}, cell), {}
    geometry = (config.network, config.geometry, config.image_size, config.patch_size, config.patch_input_size)
    geometry += ("whole image",) * config.whole_image
    digest = hashlib.sha256(repr(geometry).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    arrays = {name: jnp.asarray(array) for name, array in weights.items()}
    return _around(config, network, arrays, digest.hexdigest())


def abstract_patch_network(config) -> PatchNetwork:
    """The same with shapes for parameters, and no file read: to trace and to compile, not to run."""
    if config.ready_made or not _kind(config).needs_weights:
        return build_patch_network(config)
    kind = _kind(config)
    try:
        network = kind.build({}, 0)
    except KeyError:
        if Path(config.weights).is_file():
            return build_patch_network(config)
        raise ValueError(
            f"how wide {config.network!r} is stands in its weights alone: set config.patches.weights to {FORMATS}"
        ) from None
    shapes = _shapes(network, kind.smallest)
    outline = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return _around(config, network, outline, "outline")


def _kind(config) -> NetworkKind:
    if config.network not in NETWORKS:
        raise ValueError(f"unknown patch network {config.network!r}; known: {', '.join(NETWORKS)}, features")
    _check_sizes(config, NETWORKS[config.network])
    return NETWORKS[config.network]


def _around(config, network: nn.Module, arrays: dict[str, Any], digest: str) -> PatchNetwork:
    """`network` with its parameters, or their shapes, in the config's geometry."""
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")

    def apply(params, images):
        return extract(lambda x: network.apply({"params": params.get("network", {})}, x), config, images)

    size = config.image_size if config.geometry == "feature_map" else config.patch_input_size
    seen = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    _, cells, _, feature_size = jax.eval_shape(network.apply, {"params": tree}, seen).shape
    if config.geometry == "feature_map":
        _check_cells(config, cells)
    return PatchNetwork(
        apply=apply,
        params={"network": tree} if arrays else {},
        num_patches=(config.image_size // config.patch_size) ** 2 + config.whole_image,
        feature_size=feature_size,
        whole_image=config.whole_image,
        fingerprint=f"{config.network}-{config.geometry}-{config.image_size}-{digest[:12]}",
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


def _check_sizes(config, kind: NetworkKind) -> None:
    """Raises ValueError where what goes through the network is too small for it."""
    if config.geometry == "per_patch" and config.patch_input_size < kind.smallest:
        raise ValueError(
            f"patch_input_size {config.patch_input_size} is too small for {config.network}, "
            f"which takes {kind.smallest} pixels or more "
            f"(set patches.patch_input_size={-(-kind.smallest // 32) * 32} or more)"
        )
    if (config.geometry == "feature_map" or config.whole_image) and config.image_size < kind.smallest:
        raise ValueError(
            f"image_size {config.image_size} is too small for {config.network}, which takes {kind.smallest} pixels or "
            "more (raise patches.image_size)"
        )


def _check_cells(config, cells: int) -> None:
    """Raises ValueError where a patch would have no cell of its own among the map's `cells` a side."""
    size, side = config.image_size, config.image_size // config.patch_size
    if side > cells:
        coarser = min(size // n for n in _divisors(size) if n <= cells)
        raise ValueError(
            f"patch_size {config.patch_size} is too small for geometry 'feature_map' with {config.network}: {side} "
            f"patches a side, and {cells} cells in its map of {size} pixels (use patch_size {coarser} or more)"
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
