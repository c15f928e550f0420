"""VL-BERT (Su et al. 2020, arXiv 1908.08530): one stream in which every word also carries the whole image's feature.

A region is the word [IMG] and its own feature, which knows where the region lies. The visual part passes a LayerNorm
whose scale starts at 0, one for words and one for regions: at the start the model is BERT, and no image matters.

Departs from the paper: patches stand in for the boxes of a detector; the position that all regions share is a row of
its own, not that after the text's last word; no [END] follows the regions; a hidden patch has a feature of 0, as in
FashionBERT, and the whole image's feature still knows it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import LayerNorm, dense, table
from fbjax.model.fashionbert import MODELS, FashionBert
from fbjax.model.rivals.regions import boxes

WAVES, LONGEST = 256, 1000.0  # waves a number; their lengths grow from 1 towards this, in percent of the image's side


@MODELS.register("vlbert")
class VlBert(FashionBert):
    """`FashionBert` whose embeddings are sums until `encode` brings text and image together."""

    @nn.nowrap
    def make_image_embeddings(self) -> nn.Module:
        return VisualEmbeddings(self.spec.num_patches, self.spec.first_patch, self.config)

    def embed_text(self, ids: jax.Array, deterministic: bool = True, is_query: bool = False) -> jax.Array:
        """``ids [B, T] -> [B, T, D]``: word + position + segment."""
        return self.text_embeddings.summed(ids, is_query)

    def encode(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        left_to_right: bool = False,
    ) -> jax.Array:
        if image.shape[1]:
            text, image = text + self.image_embeddings.of_words(image), self.image_embeddings.of_regions(image)
        text, image = (self.text_embeddings.finished(x, deterministic) for x in (text, image))
        return super().encode(text, text_mask, image, positions, deterministic, left_to_right)


class VisualEmbeddings(nn.Module):
    """``features [B, P, C] -> [B, P, D]``: ``relu(linear([feature ; geometry]))`` of each region, as in the authors'
    release; the paper calls it a fully connected layer.

    Both parts of that layer have a name of their own: the geometry's product is the same for all images.
    """

    num_patches: int
    first_patch: int
    config: ModelConfig

    def setup(self):
        config = self.config
        for name in ("word", "position", "segment"):  # of [IMG], of all regions, and the third segment
            setattr(self, name, self.param(name, table(config, (None, "embed")), (1, config.width)))
        self.projection = dense(config, config.width, ("feature", "embed"), name="projection")
        self.geometry = dense(config, config.width, (None, "embed"), use_bias=False, name="geometry")
        self.word_norm = LayerNorm(config.dtype, start=0.0, name="word_norm")
        self.region_norm = LayerNorm(config.dtype, start=0.0, name="region_norm")
        self.dropout = nn.Dropout(config.hidden_dropout)

    def __call__(self, features: jax.Array, deterministic: bool) -> jax.Array:
        waves = jnp.asarray(geometry(boxes(self.num_patches, self.first_patch)))
        features = self.dropout(features.astype(jnp.float32), deterministic)
        return nn.relu(self.projection(features) + self.geometry(waves))

    def of_words(self, visual: jax.Array) -> jax.Array:
        """``visual [B, P, D] -> [B, 1, D]``: what each word adds of the whole image, the first region."""
        return self.word_norm(visual[:, :1])

    def of_regions(self, visual: jax.Array) -> jax.Array:
        """``visual [B, P, D] -> [B, P, D]``: sums of [IMG], position, segment and the visual part."""
        return self.region_norm(visual) + self.word + self.position + self.segment


def geometry(corners: np.ndarray) -> np.ndarray:
    """``[P, 4] -> [P, 2048]`` float32: for centre x, centre y, width and height in percent, 256 sines and 256 cosines.

    Wave k has the length ``1000^(k / 256)``, times 2 pi.
    """
    low, high = corners[:, :2], corners[:, 2:]
    numbers = 100 * np.concatenate([(low + high) / 2, high - low], axis=1)
    angles = numbers[..., None] / LONGEST ** (np.arange(WAVES) / WAVES)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(corners), -1).astype(np.float32)
