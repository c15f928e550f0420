"""The regions of an image: what the rivals read of a detector's boxes, the cells of a grid stand in for."""

import math

import numpy as np

from fbjax.model.towers.block_positions import cells


def boxes(num_patches: int, first_patch: int) -> np.ndarray:
    """Left, top, right and bottom [P, 4], as shares of the image: of `first_patch` tokens of the whole image, then of
    the cells of a square grid, row by row."""
    whole = np.tile([0.0, 0.0, 1.0, 1.0], (first_patch, 1))
    return np.concatenate([whole, cells(math.isqrt(num_patches - first_patch))])
