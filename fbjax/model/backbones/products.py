"""Convolutions as products of matrices or of shifted maps, so that their gradients are fast on a CPU too.

For the gradient by a kernel of 1x1 XLA copies maps into another order, and it sums shifted products with long strides:
MobileNetV1's gradient took twice as long (docs/lab/measurements.md).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

MOST_TERMS = 8  # groups of rows that are added up before the product with ones


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``[N, H, W, I], [I, O] -> [N, H, W, O]``: cells as rows of one matrix, since XLA transposes more axes first."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def gathered(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """``[N, H, W, I], [k, k, I, O] -> [N, H/stride, W/stride, O]``, TensorFlow's SAME padding: one product with the k^2
    I numbers around each cell. For few input channels: it holds k^2 / stride^2 copies of the map."""
    cells = jnp.concatenate(_taps(x, len(kernel), stride), axis=-1)
    return pointwise(cells, kernel.reshape(cells.shape[-1], -1))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """``[N, H, W, C], [k, k, C] -> [N, H/stride, W/stride, C]``, TensorFlow's SAME padding: k^2 shifted products.

    XLA fuses them into one loop. With XLA's grouped convolution the whole network took 3.9 times as long (median of 7;
    MobileNetV1 0.75 on 32 images of 128 pixels, 2 CPU cores).
    """
    return _shifted_products(x, kernel, stride)


def _shifted_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    taps = _taps(x, len(kernel), stride)
    return sum(tap * weight for tap, weight in zip(taps, kernel.reshape(len(taps), -1), strict=True))


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple]:
    return _shifted_products(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By x as JAX derives it, which is one loop; by the kernel with sums that XLA vectorises."""
    x, kernel = kept
    (by_x,) = jax.vjp(lambda x: _shifted_products(x, kernel, stride), x)[1](gradient)
    wide = gradient.astype(jnp.float32)
    by_kernel = jnp.stack([_sum_cells(tap * wide) for tap in _taps(x, len(kernel), stride)])
    return by_x, by_kernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)


def _taps(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """The cells of the padded map that each of the ``size^2`` kernel positions meets, row by row."""
    cells = [math.ceil(n / stride) for n in x.shape[1:3]]
    pads = [max((out - 1) * stride + size - n, 0) for out, n in zip(cells, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
    down, across = ((out - 1) * stride + 1 for out in cells)
    return [x[:, i : i + down : stride, j : j + across : stride] for i in range(size) for j in range(size)]


def _sum_cells(x: jax.Array) -> jax.Array:
    """``[N, H, W, C] -> [C]``: up to 8 groups of rows are added up elementwise, the rest by a product with ones.

    On a CPU, XLA's sum over parts of a padded map reads it with a stride of C numbers. No step here splits N, which
    devices share.
    """
    terms = max(n for n in range(1, MOST_TERMS + 1) if x.shape[1] % n == 0)
    rows = x.shape[1] // terms
    cells = sum(x[:, i * rows : (i + 1) * rows] for i in range(terms)).reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.ones((1, len(cells))), cells, precision="highest")[0]
