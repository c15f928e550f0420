"""The text towers of CLIP (Radford et al. 2021) and of SigLIP (Zhai et al. 2023): ids of pieces become one vector.

Both read ids as `Vocabulary.frame` gives them, ``[CLS] w1 .. wn [SEP] [PAD] ..``, and turn them into their own form. A
vector does not depend on how far a text is padded.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.backbones.layers import TransformerBlock, named_dense


class TextTower(nn.Module):
    """``ids [B, t] -> [B, E]`` of texts of at most T tokens, t <= T; the vectors have any length.

    `size`: E. `num_tokens`: T, with what begins and ends a text. Raises ValueError for longer texts.
    """

    vocabulary_size: int
    num_tokens: int
    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    size: int
    activation: str

    def _embedded(self, ids: jax.Array, num_positions: int) -> jax.Array:
        """Words and positions, ``[B, t] -> [B, t, D]``, t <= `num_positions`."""
        if ids.shape[1] > num_positions:
            raise ValueError(f"texts of {ids.shape[1]} tokens are too long for a tower of {num_positions}")
        start = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        word = self.param("word", start, (self.vocabulary_size, self.width))
        positions = self.param("positions", start, (num_positions, self.width))
        return word[ids] + positions[: ids.shape[1]]

    def _encoded(self, x: jax.Array, epsilon: float, causal: bool) -> jax.Array:
        sizes = self.num_heads, self.mlp_dim, epsilon, self.activation
        for i in range(self.num_layers):
            x = TransformerBlock(*sizes, causal=causal, name=f"block_{i}")(x)
        return nn.LayerNorm(epsilon, name="norm")(x)


class ClipTextTower(TextTower):
    """CLIP's: a position attends to those before it; the vector is that of the text's end, projected without a bias."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self._encoded(self._embedded(ids, self.num_tokens), 1e-5, causal=True)
        end = (ids != PAD_ID).sum(axis=1) - 1
        last = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return named_dense(self.size, ("embed", None), "projection", use_bias=False)(last)


class SiglipTextTower(TextTower):
    """SigLIP's: no [CLS]; every text is padded to T - 1 tokens, and all attend to all of these.

    The vector is that of the last position, which is padding in most texts, projected with a bias.
    """

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        padded = jnp.pad(ids, ((0, 0), (0, max(0, self.num_tokens - ids.shape[1]))), constant_values=PAD_ID)
        x = self._encoded(self._embedded(padded[:, 1:], self.num_tokens - 1), 1e-6, causal=False)
        return named_dense(self.size, ("embed", None), "projection")(x[:, -1])
