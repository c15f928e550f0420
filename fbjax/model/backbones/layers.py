"""Layers of the patch networks: convolutions that are fast on a CPU, norms by stored moments, transformer blocks.

A convolution computes in the dtype of its kernel, the normalisation in float32; each gives that dtype, or its input's.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.core import resampling
from fbjax.model.backbones import products

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # by the error function
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Radford et al. 2021
}


class InferenceNorm(nn.Module):
    """Batch normalisation with its stored moments: ``(x - mean) / sqrt(variance + epsilon) * gamma + beta``.

    The moments are statistics of the pretraining data and get no gradient.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        gamma = self.param("gamma", nn.initializers.ones, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        mean = jax.lax.stop_gradient(self.param("moving_mean", nn.initializers.zeros, shape))
        variance = jax.lax.stop_gradient(self.param("moving_variance", nn.initializers.ones, shape))
        scale = gamma * jax.lax.rsqrt(variance + self.epsilon)
        return (x * scale + (beta - mean * scale)).astype(x.dtype)


class DepthwiseConv(nn.Module):
    """A size x size depthwise convolution with SAME padding as shifted products: `products.depthwise`."""

    stride: int
    size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], 1)
        kernel = self.param("depthwise_kernel", nn.initializers.lecun_normal(), shape)[..., 0]
        return products.depthwise(x.astype(kernel.dtype), kernel, self.stride)


class StemConv(nn.Module):
    """A convolution of few input channels without bias, with SAME padding, as one product: `products.gathered`."""

    channels: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return products.gathered(x.astype(kernel.dtype), kernel, self.stride)


class Conv(nn.Module):
    """A convolution without bias, ``[N, H, W, I] -> [N, h, w, channels]``; its kernel is HWIO, I those of one group.

    `padded`: with PyTorch's padding, zeros that keep the map's size at stride 1; otherwise none.

    A map smaller than the kernel is computed by shifted products: 4 ms, not 142, on 8 maps of 2 x 2 x 512. Groups use
    feature_group_count: 2.7 s for ResNeXt-101 32x8d on 4 images of 224 pixels. A loop over the groups took 2.2 s, but
    twice as long to compile, and more at 64 pixels. One convolution a group compiled for a minute, and shifted products
    over the groups took twice as long. (Seconds of one core, medians of 4 to 7; 2 CPU cores, JAX 0.10.2.)
    """

    channels: int
    size: tuple[int, int]
    stride: int
    padded: bool
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.size, x.shape[-1] // self.groups, self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x, pads = x.astype(kernel.dtype), tuple((size - 1) // 2 * self.padded for size in self.size)
        if self.size == (1, 1):
            return products.pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        if self.groups == 1 and (x.shape[1] < self.size[0] or x.shape[2] < self.size[1]):
            return self._shifted(x, kernel, pads)
        strides, padding, layout = (self.stride, self.stride), [(pad, pad) for pad in pads], ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=self.groups
        )

    def _shifted(self, x: jax.Array, kernel: jax.Array, pads: tuple[int, int]) -> jax.Array:
        """One product for each kernel position that reaches more than padding."""
        rows, columns = (
            self._reach(size, pad, cells) for size, pad, cells in zip(self.size, pads, x.shape[1:3], strict=True)
        )
        x = jnp.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
        return sum(x[:, down, across] @ kernel[i, j] for i, down in rows for j, across in columns)

    def _reach(self, size: int, pad: int, cells: int) -> list[tuple[int, slice]]:
        """Along one axis: (kernel position, its cells of the padded map), without positions that reach only padding."""
        end = cells + 2 * pad - size + 1
        met = [(i, range(i, i + end, self.stride)) for i in range(size)]
        return [
            (i, slice(at.start, at.stop, at.step)) for i, at in met if any(pad <= cell < pad + cells for cell in at)
        ]


class ConvNorm(nn.Module):
    """Convolution and `InferenceNorm`: ``conv/kernel``, ``bn/{gamma,beta,moving_mean,moving_variance}``."""

    channels: int
    size: int | tuple[int, int]
    epsilon: float
    stride: int = 1
    padded: bool = True
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        x = Conv(self.channels, size, self.stride, self.padded, self.groups, name="conv")(x)
        return InferenceNorm(self.epsilon, name="bn")(x)


def named_dense(features: int, axes: tuple[str | None, str | None], name: str, use_bias: bool = True) -> nn.Dense:
    """A dense layer whose kernel carries the logical `axes` (input, output) of `fbjax.parallel.mesh`."""
    start = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
    return nn.Dense(features, use_bias=use_bias, kernel_init=start, name=name)


class DotAttention(nn.Module):
    """Attention of `num_heads` heads: queries [N, R, D] to x [N, L, D] ``-> [N, R, D]``.

    `causal`: position i of x, which are the queries, attends to positions up to i.
    """

    num_heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, queries: jax.Array, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def heads(name: str, of: jax.Array) -> jax.Array:
            projected = named_dense(width, ("embed", "heads"), name)(of)
            return projected.reshape(*of.shape[:2], self.num_heads, -1).swapaxes(1, 2)

        q, k, v = heads("query", queries), heads("key", x), heads("value", x)
        logits = jnp.einsum("bnrh,bnlh->bnrl", q, k) * q.shape[-1] ** -0.5
        if self.causal:
            logits = jnp.where(jnp.tri(x.shape[1], dtype=bool), logits, jnp.finfo(logits.dtype).min)
        mixed = jnp.einsum("bnrl,bnlh->bnrh", jax.nn.softmax(logits), v).swapaxes(1, 2).reshape(queries.shape)
        return named_dense(width, ("heads", "embed"), "out")(mixed)


class TransformerBlock(nn.Module):
    """Attention and an MLP, each over a norm of its input and added to that: ``[N, L, D] -> [N, L, D]``.

    `scaled`: each is multiplied by a learned factor a dimension first (layer scale). `activation`: of `ACTIVATIONS`.
    """

    num_heads: int
    mlp_dim: int
    epsilon: float
    activation: str = "gelu"
    scaled: bool = False
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def scale(name: str) -> jax.Array | float:
            return self.param(name, nn.initializers.ones, x.shape[-1:]) if self.scaled else 1.0

        y = nn.LayerNorm(self.epsilon, name="attention_norm")(x)
        y = DotAttention(self.num_heads, self.causal, name="attention")(y, y)
        x = x + scale("attention_scale") * y
        y = nn.LayerNorm(self.epsilon, name="mlp_norm")(x)
        y = ACTIVATIONS[self.activation](named_dense(self.mlp_dim, ("embed", "mlp"), "mlp_in")(y))
        return x + scale("mlp_scale") * named_dense(x.shape[-1], ("mlp", "embed"), "mlp_out")(y)


def resized_positions(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """A position table ``[G^2, D]`` of G x G patches for rows x columns of them, ``[rows columns, D]``.

    Resized as Hugging Face does, bicubic without antialiasing; timm and open_clip antialias.
    """
    grid = math.isqrt(len(table))
    if (rows, columns) == (grid, grid):
        return table
    vertical, horizontal = (resampling.cubic_weights(grid, size) for size in (rows, columns))
    cells = jnp.einsum("rh,cw,hwd->rcd", vertical, horizontal, table.reshape(grid, grid, -1), precision="highest")
    return cells.reshape(rows * columns, -1)
