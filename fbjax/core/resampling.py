"""Bilinear resizing as a matrix: what `tf.image.resize` and `jax.image.resize` compute, in NumPy alone."""

from collections.abc import Callable

import numpy as np


def fitted(height, width, size: int, largest: Callable = max) -> tuple:
    """The height and width at which a picture keeps its proportions and its longer side is `size`.

    Whole numbers, or integer tensors with their own `largest` of two; halves are rounded up.
    """
    longest = largest(height, width)
    return tuple(largest(1, (2 * side * size + longest) // (2 * longest)) for side in (height, width))


def weights(size: int, new_size: int) -> np.ndarray:
    """float32 [new_size, size]: each new sample as a mean of old ones, antialiased when it shrinks.

    In float32 throughout, as in TensorFlow, so that half a grey level is rounded the same way.
    """
    scale = np.float32(1) / (np.float32(new_size) / np.float32(size))
    half = np.float32(0.5)
    centres = (np.arange(new_size, dtype=np.float32) + half) * scale
    distances = np.abs(np.arange(size, dtype=np.float32) + half - centres[:, None])
    triangle = np.maximum(1 - distances * (1 / np.maximum(scale, np.float32(1))), 0)
    return triangle / triangle.sum(axis=1, keepdims=True)
