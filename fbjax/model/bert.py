"""The BERT encoder: post-LayerNorm transformer layers over embeddings that are given (Devlin et al. 2019).

Knows nothing of modalities or tasks. Every parameter is boxed with logical axis names, mapped to a mesh by
`fbjax.mesh`.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-12
gelu = partial(jax.nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class EncoderShape:
    """What an encoder is built from. `dtype` is that of matrix products; LayerNorm and softmax stay float32."""

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    initializer_range: float = 0.02

    def table(self, axes: tuple[str | None, ...]):
        """An initializer of weights that carry the logical `axes`."""
        return nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), axes)


def dense(
    shape: EncoderShape, features: int, axes: tuple[str | None, str | None], *, use_bias: bool = True, name: str
) -> nn.Dense:
    """A dense layer whose kernel carries the logical `axes` (input, output)."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=shape.dtype,
        kernel_init=shape.table(axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )


class Attention(nn.Module):
    """Multi-head attention of `queries` [B, R, D] over `keys` [B, L, D] where `mask` [B, L]."""

    shape: EncoderShape

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        heads = self.shape.num_heads

        def project(x, name):
            x = dense(self.shape, self.shape.width, ("embed", "heads"), name=name)(x)
            return x.reshape(*x.shape[:2], heads, -1)

        q, k, v = project(queries, "query"), project(keys, "key"), project(keys, "value")
        if deterministic or not self.shape.attention_dropout:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
        else:  # jax.nn's has no dropout
            mixed = nn.dot_product_attention(
                q,
                k,
                v,
                mask=mask[:, None, None, :],
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=self.shape.attention_dropout,
                deterministic=False,
            )
        mixed = mixed.reshape(*queries.shape[:2], -1)
        return dense(self.shape, self.shape.width, ("heads", "embed"), name="out")(mixed)


class Layer(nn.Module):
    """Attention and MLP, each followed by a residual and a LayerNorm.

    With `positions` [B, R] only those rows are computed past the keys and values: [B, R, D] comes out.
    """

    shape: EncoderShape

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, positions: jax.Array | None, deterministic: bool) -> jax.Array:
        drop = nn.Dropout(self.shape.hidden_dropout)
        rows = x if positions is None else jnp.take_along_axis(x, positions[..., None], axis=1)
        attended = Attention(self.shape, name="attention")(rows, x, mask, deterministic)
        rows = layer_norm("attention_norm")(rows + drop(attended, deterministic))
        hidden = gelu(dense(self.shape, self.shape.mlp_width, ("embed", "mlp"), name="mlp_in")(rows))
        hidden = dense(self.shape, self.shape.width, ("mlp", "embed"), name="mlp_out")(hidden)
        return layer_norm("mlp_norm")(rows + drop(hidden, deterministic))


class Encoder(nn.Module):
    """``x [B, L, D], mask [B, L] -> [B, L, D]``, or with `positions` [B, R] ``-> [B, R, D]``: those rows alone.

    What nobody reads of the last layer is not computed: its queries, MLP and norms run at `positions` only.
    """

    shape: EncoderShape

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, positions: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        for i in range(self.shape.num_layers):
            last = i == self.shape.num_layers - 1
            x = Layer(self.shape, name=f"layer_{i}")(x, mask, positions if last else None, deterministic)
        return x
