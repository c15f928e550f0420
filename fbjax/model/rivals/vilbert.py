"""ViLBERT (Lu et al. 2019, arXiv 1908.02265): a text stream and an image stream that attend to each other.

The first layers read the text alone. Then come pairs of a block of co-attention and a layer in each stream. Departs
from the paper: patches stand in for the boxes of a detector, and the image stream and the co-attention have the width,
heads and MLP of the text stream (the paper: 1,024, 8 and 1,024 beside 768, 12 and 3,072).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import LayerNorm, by_example, dense, rematerialised
from fbjax.model.fashionbert import MODELS, FashionBert
from fbjax.model.rivals.regions import boxes


@MODELS.register("vilbert")
class ViLBert(FashionBert):
    """`FashionBert` of two streams. Every layer computes all positions."""

    @nn.nowrap
    def make_image_embeddings(self) -> nn.Module:
        return RegionEmbeddings(self.spec.num_patches, self.spec.first_patch, self.config)

    @nn.nowrap
    def make_encoder(self) -> nn.Module:
        return CoAttentionEncoder(self.config)

    def encode(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        hidden = self.encoder(text, text_mask, image, deterministic)
        return hidden if positions is None else jnp.take_along_axis(hidden, positions[..., None], axis=1)


class CoAttentionEncoder(nn.Module):
    """``text [B, T, D], text_mask [B, T], image [B, P, D] -> [B, T + P, D]``.

    In a block each stream asks with its queries for keys and values of the other, as that was before the block. Where
    there is no text or no image, the other's layers run alone, without the blocks: a text alone is BERT's.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, text: jax.Array, text_mask: jax.Array, image: jax.Array, deterministic: bool) -> jax.Array:
        layer, text, image = rematerialised(self.config.remat), by_example(text), by_example(image)
        image_mask = jnp.ones(image.shape[:2], bool)
        has_text, has_image = bool(text.shape[1]), bool(image.shape[1])

        def run(name: str, x: jax.Array, mask: jax.Array, others: jax.Array | None = None) -> jax.Array:
            return layer(self.config, name=name)(x, mask, None, deterministic, None, others)

        alone = self.config.num_layers - self.config.co_attention_blocks
        for i in range(alone if has_text else 0):
            text = run(f"layer_{i}", text, text_mask)
        for i in range(self.config.co_attention_blocks):
            if has_text and has_image:
                of_text = run(f"text_over_image_{i}", text, image_mask, image)
                text, image = of_text, run(f"image_over_text_{i}", image, text_mask, text)
            text = run(f"layer_{alone + i}", text, text_mask) if has_text else text
            image = run(f"image_layer_{i}", image, image_mask) if has_image else image
        return jax.lax.concatenate([text, image], 1)


class RegionEmbeddings(nn.Module):
    """``features [B, P, C] -> [B, P, D]``: linear(features) + linear(left, top, right, bottom and area of the region),
    LayerNorm, dropout. Regions are those of `boxes`, their numbers shares of the image."""

    num_patches: int
    first_patch: int
    config: ModelConfig

    @nn.compact
    def __call__(self, features: jax.Array, deterministic: bool) -> jax.Array:
        corners = boxes(self.num_patches, self.first_patch)
        area = (corners[:, 2:] - corners[:, :2]).prod(axis=1, keepdims=True)
        places = jnp.asarray(np.concatenate([corners, area], axis=1), jnp.float32)
        x = dense(self.config, self.config.width, ("feature", "embed"), name="projection")(features)
        x = x + dense(self.config, self.config.width, (None, "embed"), name="location")(places)
        drop = nn.Dropout(self.config.hidden_dropout)
        return drop(LayerNorm(self.config.dtype, name="norm")(x), deterministic)
