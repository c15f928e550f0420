"""Resizing as a matrix, in NumPy alone: bilinear as TensorFlow and JAX compute it, bicubic as PyTorch does."""

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


def cubic_weights(size: int, new_size: int) -> np.ndarray:
    """float32 [new_size, size]: bicubic, as PyTorch's `interpolate` has it without antialiasing.

    Keys' kernel with a = -0.75 over the four nearest samples, those past an edge replaced by the last one. JAX's has
    a = -0.5, and antialiases when it shrinks.
    """
    a = -0.75
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centres).astype(int) - 1
    found = np.zeros((new_size, size))
    for tap in range(4):
        x = np.abs(centres - (first + tap))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * a * x - 4 * a
        np.add.at(found, (np.arange(new_size), np.clip(first + tap, 0, size - 1)), np.where(x <= 1, near, far))
    return found.astype(np.float32)
