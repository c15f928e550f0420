"""Bilinear resizing as a matrix: what `tf.image.resize` and `jax.image.resize` compute, in NumPy alone."""

import numpy as np


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
