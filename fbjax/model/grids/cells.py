"""Cells of a feature map as patches: one grid, or grids of several scales over the same image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

NUM_TURNED, GREY_SCALE = 3, 4
NUM_VARIANTS = NUM_TURNED + GREY_SCALE**2  # rows of `variants`
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)

Output = jax.Array | tuple[jax.Array, jax.Array]  # feature map, or (feature map, features of the whole image)


def map_and_whole(output: Output) -> tuple[jax.Array, jax.Array]:
    """A network's feature map [N, h, w, C] and its features of the whole image [N, C], by default the map's mean."""
    return output if isinstance(output, tuple) else (output, output.mean(axis=(1, 2)))


def average_cells(feature_map: jax.Array, side: int) -> jax.Array:
    """``[B, h, w, C] -> [B, side, side, C]``: each patch is the mean of the cells that it touches."""
    for axis in (1, 2):
        size = feature_map.shape[axis]
        bounds = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        parts = [jax.lax.slice_in_dim(feature_map, *bound, axis=axis).mean(axis=axis) for bound in bounds]
        feature_map = jnp.stack(parts, axis=axis)
    return feature_map


def pyramid(feature_map: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    """``[B, h, w, C] -> [B, P, C]``: the s x s cells of each scale s, row by row, P the sum of the squares."""
    b, _, _, size = feature_map.shape
    return jnp.concatenate([average_cells(feature_map, s).reshape(b, s * s, size) for s in scales], axis=1)


def num_cells(scales: tuple[int, ...]) -> int:
    return sum(s * s for s in scales)


def first_cell(scales: tuple[int, ...], scale: int) -> int:
    """The index of the first cell of `scale` among those of all `scales`."""
    return num_cells(scales[: scales.index(scale)])


def variants(network: Callable[..., Output], images: jax.Array, key: jax.Array | None) -> jax.Array:
    """``images [B, S, S, 3] -> [B, 19, C]``: the feature of the whole image turned by 90, 180 and 270 degrees, and
    those of the 4 x 4 cells of the grey image."""
    turned = [jnp.rot90(images, k, axes=(1, 2)) for k in range(1, 1 + NUM_TURNED)]
    grey = jnp.broadcast_to((images @ jnp.array(LUMINANCE))[..., None], images.shape)
    scales = [(1,)] * NUM_TURNED + [
        (GREY_SCALE,)
    ]  # each in a pass of its own, which costs nothing where it is not read
    maps = (map_and_whole(network(image, key))[0] for image in (*turned, grey))
    return jnp.concatenate([pyramid(*one) for one in zip(maps, scales, strict=True)], axis=1)
