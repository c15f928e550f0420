"""Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): FashionBERT over patches of several scales that know their place.

Departs from the paper: patches are cells of one pass over the image, by `patches.fit = "foreground"` over its
foreground's box, where the paper enlarges each patch; the box comes from a rule (`fbjax/data/sources/foreground.py`),
not from a network; coordinates are shares of the image (the release: pixels, whose areas would outweigh the features);
one projection and LayerNorm serve all scales (the release: one of each a scale); masks are random, or follow the
transport plans of a run with tpa (`train.guided_masks`), as neither the captioner nor the alignment that guides the
paper's masks is public.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.config.schema import ModelConfig
from fbjax.model.encoder import LayerNorm, dense, table
from fbjax.model.fashionbert import MODELS, FashionBert
from fbjax.model.towers.block_positions import cells


@MODELS.register("kaleido")
class KaleidoBert(FashionBert):
    """`FashionBert` whose image tokens are cells of `spec.scales`."""

    @nn.nowrap
    def make_image_embeddings(self) -> nn.Module:
        return ScaleEmbeddings(self.spec.scales, self.config)


class ScaleEmbeddings(nn.Module):
    """``features [B, P, C] -> [B, P, D]``: linear(features) + linear(`coordinates`), both without bias, + a row of each
    scale, LayerNorm; dropout of the features and of the result."""

    scales: tuple[int, ...]
    config: ModelConfig

    @nn.compact
    def __call__(self, features: jax.Array, deterministic: bool) -> jax.Array:
        width, drop = self.config.width, nn.Dropout(self.config.hidden_dropout)
        scale = self.param("scale", table(self.config, (None, "embed")), (len(self.scales), width))
        features = drop(features.astype(jnp.float32), deterministic)
        x = dense(self.config, width, ("feature", "embed"), use_bias=False, name="projection")(features)
        places = jnp.asarray(coordinates(self.scales))
        x = x + dense(self.config, width, (None, "embed"), use_bias=False, name="location")(places)
        x = x + scale[np.repeat(np.arange(len(self.scales)), np.square(self.scales))]
        return drop(LayerNorm(self.config.dtype, name="norm")(x), deterministic)


def coordinates(scales: tuple[int, ...]) -> np.ndarray:
    """[P, 5] float32: left, right, top, bottom and area of each cell of each scale, as shares of the image."""
    left, top, right, bottom = np.concatenate([cells(scale) for scale in scales]).T
    return np.stack([left, right, top, bottom, (right - left) * (bottom - top)], axis=1).astype(np.float32)
