"""Patch networks: an image becomes P patch features of size C, the "words" of the image (paper, section 3.2).

A *backbone* is a linen module ``images [N, H, W, 3] in 0..255 -> feature map [N, h, w, C]``, with or without features
[N, C] of the whole image beside it; each registers itself in a file of `fbjax.model.backbones`. `PatchNetwork` cuts
images for it in one of two geometries.

Axis legend, here and everywhere: B examples, T text tokens, P patches, L = T + P, D width, N heads, H = D/N, F MLP
width, V vocabulary, C patch feature size, K tasks, Q queries, G gallery.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.data import DataConfig
from fbjax.core import resampling
from fbjax.model.backbones.registry import BACKBONES, Backbone, load_network, shapes_of
from fbjax.model.grids.cells import NUM_VARIANTS, Output, average_cells, map_and_whole, num_cells, pyramid, variants
from fbjax.model.weights.files import FORMATS

SIDE_BY_SIDE = "+"  # between the names of several networks
NETWORK = "patches/network/"  # before the names of a network's parameters
PIXELS_AT_ONCE = 2**22  # of enlarged patches; a network needs some 200 bytes a pixel
Network = Callable[[jax.Array, jax.Array | None], Output]  # (images, PRNG key or None) -> ..


def extract(network: Network, config, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """``images [B, S, S, 3] uint8 -> features [B, P, C]`` float32, (S / patch_size)^2 patches row by row.

    `per_patch` (the paper): the network reads each patch alone, enlarged to `patch_input_size` pixels, and its map is
    averaged. `feature_map`: the network reads the whole image, and each patch is the mean of the cells that it touches.
    Departs from the paper: a cell also depends on its surroundings.
    `whole_image`: the network's features of the whole image, or else the mean of its feature map, come first. Departs
    from the paper: one more token.
    `scales`: the cells of each scale of the feature map, coarse first, in place of those patches (Kaleido-BERT).
    """
    images = images.astype(jnp.float32)
    side = images.shape[1] // config.patch_size
    if _reads_image(config):
        feature_map, whole = map_and_whole(network(images, key))
    if config.scales:
        patches = pyramid(feature_map, config.scales)
        patches = jnp.concatenate([patches, variants(network, images, key)], axis=1) if config.variants else patches
    elif config.geometry == "feature_map":
        patches = average_cells(feature_map, side).reshape(images.shape[0], side * side, -1)
    else:
        patches = per_patch_features(network, images, config.patch_size, config.patch_input_size, key)
    if not config.whole_image:
        return patches
    return jnp.concatenate([whole[:, None], patches], axis=1)


def per_patch_features(
    network: Network, images: jax.Array, patch_size: int, patch_input_size: int, key: jax.Array | None = None
) -> jax.Array:
    """``[B, S, S, 3] -> [B, P, C]``, with as many patches of each image at a time as `PIXELS_AT_ONCE` allows."""
    b, side = len(images), images.shape[1] // patch_size
    patches = images.reshape(b, side, patch_size, side, patch_size, 3).swapaxes(2, 3)
    at_once = max(n for n in _divisors(side * side) if n == 1 or n * b * patch_input_size**2 <= PIXELS_AT_ONCE)
    weights = resampling.weights(patch_size, patch_input_size)
    turns = patches.reshape(b, -1, at_once, patch_size, patch_size, 3).swapaxes(0, 1)
    turns = turns, None if key is None else jax.random.split(key, len(turns))

    def features(turn):
        patches, key = turn
        patches = patches.reshape(b * at_once, patch_size, patch_size, 3)
        if patch_input_size != patch_size:
            patches = jnp.einsum("rh,cw,bhwk->brck", weights, weights, patches, precision="highest")
        return map_and_whole(network(patches, key))[0].mean(axis=(1, 2)).reshape(b, at_once, -1)

    only = len(turns[0]) == 1
    found = features(jax.tree.map(lambda x: x[0], turns))[None] if only else jax.lax.map(features, turns)
    return found.swapaxes(0, 1).reshape(b, side * side, -1)


@dataclasses.dataclass(frozen=True)
class PatchNetwork:
    """A patch network ready for use: ``apply(params, images [B, S, S, 3] uint8, *, train=False, key=None)`` gives
    features [B, P, C].

    The backbone's dropout and augmentation use `train` and the PRNG `key`. `num_patches` includes the token of the
    whole image, which comes first under `whole_image`. `fingerprint` identifies network, weights and geometry: networks
    with the same one give the same features. `twin`: as in `Backbone`. `fixed`: names of the parameters, or of the
    modules that hold them, that stay as they are where the network trains, "patches/network/conv1". `scales`: those of
    the config. With `num_variants` as many rows of `variants` follow the P of each image.
    """

    apply: Callable[..., jax.Array]
    params: Any
    num_patches: int
    feature_size: int
    whole_image: bool
    fingerprint: str
    twin: dict | None = None
    fixed: tuple[str, ...] = ()
    scales: tuple[int, ...] = ()
    num_variants: int = 0
    num_images: int = 1  # of a product, see `fbjax.model.grids.pictures`; `num_patches` counts those of all

    @property
    def num_rows(self) -> int:
        return self.num_patches + self.num_variants

    def precomputed(self) -> "PatchNetwork":
        """The network for cached features: ``apply`` is the identity and there are no parameters."""
        return dataclasses.replace(self, apply=_identity, params={}, fixed=())

    def feature_input(self, mode: str) -> "PatchNetwork":
        """The network of the train step under `patches.mode`: the identity where features are cached."""
        return self.precomputed() if mode == "cached" else self

    def frozen(self, mode: str) -> dict:
        """``{"patches": parameters}`` that the step does not train; {} where it trains them."""
        return {} if mode == "trained" else {"patches": self.feature_input(mode).params}


def build_patch_network(config, weights_path: str | Path | None = None) -> PatchNetwork:
    """The network that a `PatchConfig` describes, with weights from `weights_path` (default: the config's path)."""
    return _side_by_side(config, partial(_loaded, weights_path=weights_path))


def abstract_patch_network(config) -> PatchNetwork:
    """The same with shapes for parameters, without reading a file; to compile, not to run."""
    return _side_by_side(config, _abstract)


def _loaded(config, weights_path: str | Path | None = None) -> tuple[nn.Module, dict, str]:
    """A single network, its parameters by name, and a hash of these and the geometry."""
    backbone = _backbone(config)
    if backbone.needs_weights:
        network, weights = load_network(config.network, weights_path or config.weights)
    else:
        cell = config.patch_size if config.geometry == "feature_map" else config.patch_input_size
        network, weights = backbone.build({}, cell), {}
    geometry = (config.network, config.geometry, config.image_size, config.patch_size, config.patch_input_size)
    geometry += ("whole image",) * config.whole_image + (config.fit,) * (config.fit != "squash") + tuple(config.levels)
    geometry += (("scales", *config.scales) if config.scales else ()) + ("variants",) * config.variants
    digest = hashlib.sha256(repr(geometry).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return network, {name: jnp.asarray(array) for name, array in weights.items()}, digest.hexdigest()


def _abstract(config) -> tuple[nn.Module, dict, str]:
    backbone = _backbone(config)
    if not backbone.needs_weights:
        return _loaded(config)
    try:
        network = backbone.build({})
    except KeyError:
        if Path(config.weights).is_file():
            return _loaded(config)
        remedy = f"set config.patches.weights to {FORMATS}"
        raise ValueError(f"only its weights tell the width of {config.network!r}: {remedy}") from None
    shapes = shapes_of(network, backbone.smallest)
    return network, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}, "abstract"


def _side_by_side(config, load: Callable) -> PatchNetwork:
    """The network of `config`, or several joined, each by ``load(its config)``; their blocks are counted through."""
    parts, first = {}, 0
    singles = _singles(config)
    for single in singles:
        network, arrays, digest = load(single)
        if len(singles) > 1:
            count = len(BACKBONES[single.network].blocks(network))
            here = tuple(level - first for level in config.levels if first <= level < first + count)
            single, first = dataclasses.replace(single, levels=here), first + count
        parts[single.network] = _patch_network(single, network, arrays, digest)
    if len(parts) == 1:
        return next(iter(parts.values()))
    if beyond := [level for level in config.levels if not 0 <= level < first]:
        raise ValueError(f"patches.levels {config.levels}: {config.network} has {first} blocks, no map {beyond[0]}")
    return _joined(parts)


def _singles(config) -> list:
    """A config for each network that stands side by side."""
    names, weights = config.network.split(SIDE_BY_SIDE), [config.weights]
    if len(names) > 1 and config.weights and not Path(config.weights).is_file():
        weights = config.weights.split(SIDE_BY_SIDE)
    if len(set(names)) < len(names):
        raise ValueError(f"patches.network {config.network!r} names a network twice: name it once")
    if len(weights) not in (1, len(names)):
        raise ValueError(
            f"patches.weights {config.weights!r} names {len(weights)} files for the {len(names)} networks of "
            f"{config.network!r}: give one for each, with {SIDE_BY_SIDE} in between"
        )
    weights = weights * len(names) if len(weights) == 1 else weights
    pairs = zip(names, weights, strict=True)
    return [dataclasses.replace(config, network=name, weights=path) for name, path in pairs]


def _joined(parts: dict[str, PatchNetwork]) -> PatchNetwork:
    """Networks side by side: the features of each patch are those of all of them, one after another."""

    def apply(params, images, *, train=False, key=None):
        keys = [None] * len(parts) if key is None else jax.random.split(key, len(parts))
        features = [
            part.apply({"network": params["network"].get(name, {})}, images, train=train, key=own)
            for (name, part), own in zip(parts.items(), keys, strict=True)
        ]
        return jnp.concatenate(features, axis=-1)

    networks = list(parts.values())
    twins = {name: part.twin for name, part in parts.items()}
    digest = hashlib.sha256("".join(part.fingerprint for part in networks).encode()).hexdigest()
    return dataclasses.replace(
        networks[0],
        apply=apply,
        params={"network": {name: part.params["network"] for name, part in parts.items() if part.params}},
        feature_size=sum(part.feature_size for part in networks),
        fingerprint=f"{SIDE_BY_SIDE.join(parts)}-{digest[:12]}",
        twin={"class": "SideBySide", "networks": twins} if all(twins.values()) else None,
        fixed=tuple(f"{NETWORK}{name}/{x.removeprefix(NETWORK)}" for name, part in parts.items() for x in part.fixed),
    )


def _identity(params, features: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
    return features


def _patch_network(config, network: nn.Module, arrays: dict[str, Any], digest: str) -> PatchNetwork:
    """`network` with its parameters, or their shapes, and the config's geometry."""
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
    backbone = BACKBONES[config.network]
    fixed, levels = backbone.first_blocks(network, config.frozen_blocks), backbone.block_modules(network, config.levels)

    def run(params, images, train=False, key=None) -> Output:
        rngs = None if key is None else {"dropout": key}
        output = _with_levels(network, levels, {"params": params}, images, train, rngs=rngs)
        return jax.tree.map(lambda x: x.astype(jnp.float32), output)

    def apply(params, images, *, train=False, key=None):
        params = params.get("network", {})
        if train:
            params = {name: jax.lax.stop_gradient(part) if name in fixed else part for name, part in params.items()}
            params = _kernels_as(config.dtype, params)
        network_of = partial(run, params, train=train)
        network_of = _remat(network_of) if train and config.remat else network_of
        return extract(lambda images, key: network_of(images, key=key), config, images, key)

    size = config.image_size if config.geometry == "feature_map" else config.patch_input_size
    seen = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    feature_map, _ = jax.eval_shape(lambda *given: map_and_whole(run(*given)), tree, seen)
    _, cells, _, feature_size = feature_map.shape
    side = config.image_size // config.patch_size
    if config.scales and max(config.scales) > cells:
        raise ValueError(
            f"patches.scales {config.scales}: {config.network} has {cells} cells a side in its map of {size} pixels, "
            f"too few for scale {max(config.scales)} (raise patches.image_size, or leave the scale out)"
        )
    if config.geometry == "feature_map" and not config.scales and side > cells:
        coarser = min(size // n for n in _divisors(size) if n <= cells)
        raise ValueError(
            f"patch_size {config.patch_size} is too small for geometry 'feature_map' with {config.network}: {side} "
            f"patches a side, and {cells} cells in its map of {size} pixels (use patch_size {coarser} or more)"
        )
    return PatchNetwork(
        apply=apply,
        params={"network": tree} if arrays else {},
        num_patches=num_cells(config.scales) or side**2 + config.whole_image,
        feature_size=feature_size,
        whole_image=config.whole_image,
        fingerprint=f"{config.network}-{config.geometry}-{config.image_size}-{digest[:12]}",
        twin=backbone.twin(network) | ({"levels": list(levels)} if levels else {}) if backbone.twin else None,
        fixed=tuple(f"{NETWORK}{name}" for name in fixed),
        scales=config.scales,
        num_variants=NUM_VARIANTS * config.variants,
    )


def _with_levels(network: nn.Module, levels: tuple[str, ...], variables: dict, images: jax.Array, train, **options):
    """The network's output; with `levels`, its map with those of these modules, averaged to its cells, before it."""
    if not levels:
        return network.apply(variables, images, train, **options)
    wanted = lambda module, _: module.name in levels  # noqa: E731
    output, found = network.apply(variables, images, train, capture_intermediates=wanted, **options)
    maps = [found["intermediates"][name]["__call__"][0] for name in levels]
    if any(level.ndim != 4 for level in maps):
        raise ValueError(f"patches.levels: blocks of {type(network).__name__} give tokens, not maps (leave it at ())")
    return jnp.concatenate([*(average_cells(level, output.shape[1]) for level in maps), output], axis=-1)


def _kernels_as(dtype: str, params: dict) -> dict:
    """`params` with kernels as `dtype`: convolutions compute in that of their kernels, norms in float32."""
    return jax.tree.map(lambda p: p.astype(dtype) if p.ndim > 1 else p, params)


def _remat(feature_map: Network) -> Network:
    """Keeps the products of convolutions for the backward pass and computes norms, activations and depthwise anew."""
    products = ("dot_general", "conv_general_dilated")
    return jax.checkpoint(feature_map, policy=lambda primitive, *_, **__: primitive.name in products)


def given_features(data: DataConfig) -> PatchNetwork | None:
    """The identity on features [B, P, C] where `data` holds these in place of images, else None."""
    if not data.feature_size:
        return None
    fingerprint = f"features-{data.num_patches}x{data.feature_size}"
    return PatchNetwork(_identity, {}, data.num_patches, data.feature_size, whole_image=False, fingerprint=fingerprint)


def count_live_dimensions(features: np.ndarray) -> int:
    """The number of the C dimensions of `features` [B, P, C] that vary between patches."""
    return int((np.asarray(features, np.float32).reshape(-1, features.shape[-1]).std(axis=0) > 1e-4).sum())


def _backbone(config) -> Backbone:
    """The backbone that a config names. Raises ValueError for an unknown name, or for sizes that it cannot take."""
    backbone = BACKBONES[config.network]
    smallest, multiple = backbone.smallest, backbone.multiple
    if config.geometry == "per_patch" and config.patch_input_size < smallest:
        step = multiple if multiple > 1 else 32
        raise ValueError(
            f"patch_input_size {config.patch_input_size} is too small for {config.network}, which takes {smallest} "
            f"pixels or more (set patches.patch_input_size={-(-smallest // step) * step} or more)"
        )
    if _reads_image(config) and config.image_size < smallest:
        raise ValueError(
            f"image_size {config.image_size} is too small for {config.network}, which takes {smallest} pixels or more "
            "(raise patches.image_size)"
        )
    sizes = {"image_size": _reads_image(config), "patch_input_size": config.geometry == "per_patch"}
    for name, seen in sizes.items():
        if seen and (size := getattr(config, name)) % multiple:
            below, above = size // multiple * multiple, -(-size // multiple) * multiple
            raise ValueError(
                f"{name} {size} is an image size that {config.network} cannot take: it takes multiples of {multiple} "
                f"pixels (set patches.{name}={below} or {above})"
            )
    return backbone


def _reads_image(config) -> bool:
    """Whether the network reads whole images."""
    return config.geometry == "feature_map" or config.whole_image


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
