"""Heads that are more than one dense layer."""

import flax.linen as nn
import jax

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import LayerNorm, dense, gelu


class MlmHead(nn.Module):
    """Dense, GELU, LayerNorm before the tied decoder, and the decoder's bias."""

    vocabulary_size: int
    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, decode) -> jax.Array:
        x = gelu(dense(self.config, self.config.width, ("embed", None), name="transform")(hidden))
        x = LayerNorm(self.config.dtype, name="norm")(x).astype(self.config.dtype)
        bias = self.param(
            "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocabulary",)), (self.vocabulary_size,)
        )
        return decode(x) + bias
