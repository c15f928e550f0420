"""Cells of a feature map as patches: one grid, or grids of several scales over the same image."""

import jax
import jax.numpy as jnp


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
