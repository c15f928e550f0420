"""Embeddings of both modalities: text pieces and patch features become vectors of the encoder's width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import LayerNorm, dense, table
from fbjax.model.grids.pictures import shown

NUM_TEXT_SEGMENTS = 2  # rows of BERT's token-type table
TEXT_SEGMENT, QUERY_SEGMENT = 0, 1  # "T" and "Q"; a query is BERT's second sentence


class TextEmbeddings(nn.Module):
    """``ids [B, T] -> [B, T, D]``: word + position + segment, LayerNorm, dropout."""

    vocabulary_size: int
    num_positions: int
    config: ModelConfig

    def setup(self):
        width = self.config.width
        self.word = self.param("word", table(self.config, ("vocabulary", "embed")), (self.vocabulary_size, width))
        self.position = self.param("position", table(self.config, (None, "embed")), (self.num_positions, width))
        self.segment = self.param("segment", table(self.config, (None, "embed")), (NUM_TEXT_SEGMENTS, width))
        self.norm = LayerNorm(self.config.dtype, name="norm")
        self.dropout = nn.Dropout(self.config.hidden_dropout)

    def __call__(self, ids: jax.Array, deterministic: bool, is_query: bool = False) -> jax.Array:
        return self.finished(self.summed(ids, is_query), deterministic)

    def summed(self, ids: jax.Array, is_query: bool = False) -> jax.Array:
        """``ids [B, T] -> [B, T, D]``: word + position + segment."""
        segment = self.segment[QUERY_SEGMENT if is_query else TEXT_SEGMENT]
        return self.word[ids] + self.position[: ids.shape[1]] + segment

    def finished(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """LayerNorm and dropout of sums ``[B, L, D]``."""
        return self.dropout(self.norm(x), deterministic)

    def decode(self, x: jax.Array) -> jax.Array:
        """The tied decoder: ``x [..., D] -> [..., V]``, without bias."""
        return jnp.einsum("...d,vd->...v", x, self.word.astype(x.dtype), preferred_element_type=jnp.float32)


class ImageEmbeddings(nn.Module):
    """``features [B, P, C] -> [B, P, D]``: dropout, bias-free projection + position + segment, LayerNorm, dropout.

    With `num_images` above 1 each picture has `num_patches` of the P patches, the same positions, and from the second
    on a vector of its own that starts at 0; what is NaN stays NaN.
    """

    num_patches: int
    config: ModelConfig
    num_images: int = 1

    @nn.compact
    def __call__(self, features: jax.Array, deterministic: bool) -> jax.Array:
        width = self.config.width
        drop = nn.Dropout(self.config.hidden_dropout)
        position = self.param("position", table(self.config, (None, "embed")), (self.num_patches, width))
        segment = self.param("segment", table(self.config, (None, "embed")), (1, width))
        if self.num_images > 1:
            own = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
            numbers = jnp.pad(self.param("picture", own, (self.num_images - 1, width)), ((1, 0), (0, 0)))
            position = (numbers[:, None] + position).reshape(-1, width)
            features, there = shown(features)
        features = drop(features.astype(jnp.float32), deterministic)
        x = dense(self.config, width, ("feature", "embed"), use_bias=False, name="projection")(features)
        x = drop(LayerNorm(self.config.dtype, name="norm")(x + position + segment), deterministic)
        return x if self.num_images == 1 else jnp.where(there[..., None], x, jnp.nan)
