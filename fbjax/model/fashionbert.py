"""FashionBERT (section 3): text pieces and image patches through one BERT encoder, a head for each pretraining task.

The two modalities share the encoder and nothing before it: position, segment and LayerNorm tables are each its own.
Methods are the parts that callers combine: `embed_text`, `embed_image`, `encode`, and the heads. With `embedding_dim`
the same encoder also reads text or image alone, as two towers that share their parameters: `tower`, `vector`.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.schema import ModelConfig
from fbjax.model.embeddings import ImageEmbeddings, TextEmbeddings
from fbjax.model.encoder import Encoder, EncoderShape, dense
from fbjax.model.heads import MlmHead
from fbjax.model.patch_features import PatchNetwork

START_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of cosines (Radford et al. 2021)


class FashionBert(nn.Module):
    """The single-stream model. C is `feature_size`, P `num_patches`, T at most `text_tokens`.

    `encode` takes text before patches, padding in between: ``[CLS] w1 .. wn [SEP] [PAD] .. p1 .. pP``.
    """

    vocabulary_size: int
    text_tokens: int
    num_patches: int
    feature_size: int
    shape: EncoderShape
    embedding_dim: int = 0
    tia_reads: str = "cls"

    def setup(self):
        width = self.shape.width
        self.text_embeddings = TextEmbeddings(self.vocabulary_size, self.text_tokens, self.shape)
        self.image_embeddings = ImageEmbeddings(self.num_patches, self.shape)
        self.encoder = Encoder(self.shape)
        self.pooler = dense(self.shape, width, ("embed", None), name="pooler")
        self.mlm = MlmHead(self.vocabulary_size, self.shape)
        self.mpm = dense(self.shape, self.feature_size, ("embed", "feature"), use_bias=False, name="mpm")
        self.tia = dense(dataclasses.replace(self.shape, dtype=jnp.float32), 2, ("embed", None), name="tia")
        if self.embedding_dim:
            self.projection = dense(self.shape, self.embedding_dim, ("embed", None), use_bias=False, name="projection")
            start = nn.with_logical_partitioning(nn.initializers.constant(math.log(START_SCALE)), ())
            self.log_scale = self.param("log_scale", start, ())

    def __call__(self, ids: jax.Array, text_mask: jax.Array, features: jax.Array):
        """Every head on every position it could serve: to initialise all parameters, and to inspect."""
        text = self.embed_text(ids)
        hidden, means = self.encode_pair(text, text_mask, self.embed_image(features))
        t = ids.shape[1]
        if self.embedding_dim:
            self.projection(hidden[:, 0])
        return self.mlm_logits(hidden[:, :t]), self.mpm_logits(hidden[:, t:]), self.tia_logits(hidden[:, 0], means)

    def embed_text(self, ids: jax.Array, deterministic: bool = True) -> jax.Array:
        """``ids [B, T] -> [B, T, D]``."""
        return self.text_embeddings(ids, deterministic)

    def embed_image(self, features: jax.Array, deterministic: bool = True) -> jax.Array:
        """``features [B, P, C] -> [B, P, D]``."""
        return self.image_embeddings(features, deterministic)

    def encode(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """``text [B, T, D], text_mask [B, T], image [B, P, D] -> [B, L, D]``, or `positions` [B, R] of it."""
        mask = _whole_mask(text_mask, image)
        is_image = jax.lax.concatenate([jnp.zeros(text.shape[1], bool), jnp.ones(image.shape[1], bool)], 0)
        kinds = is_image if text.shape[1] and image.shape[1] else None
        return self.encoder(jax.lax.concatenate([text, image], 1), mask, positions, deterministic, kinds)

    def encode_pair(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`encode`, and what `tia_logits` takes beside [CLS]: the means over text and over image, ``[B, 2, D]``.

        None where TIA reads [CLS] alone: of the last layer only `positions` are computed then.
        """
        if self.tia_reads == "cls":
            return self.encode(text, text_mask, image, positions, deterministic), None
        hidden, t = self.encode(text, text_mask, image, deterministic=deterministic), text.shape[1]
        means = jnp.stack([_mean(hidden[:, :t], text_mask), hidden[:, t:].mean(axis=1)], axis=1)
        return hidden if positions is None else jnp.take_along_axis(hidden, positions[..., None], axis=1), means

    def tower(
        self, text: jax.Array | None, text_mask: jax.Array | None, image: jax.Array | None, deterministic: bool = True
    ) -> jax.Array:
        """Embedded text, image, or both (a product) through the encoder, the mean over all positions: ``[B, D]``.

        MiniLM's sentences are means too; the paper does not say.
        """
        if text is None:
            text, text_mask = image[:, :0], jnp.zeros((image.shape[0], 0), bool)
        if image is None:
            image = text[:, :0]
        hidden = self.encode(text, text_mask, image, deterministic=deterministic)
        return _mean(hidden, _whole_mask(text_mask, image))

    def vector(self, mean: jax.Array) -> jax.Array:
        """Means [..., D] projected to vectors of length 1, [..., E] float32."""
        projected = self.projection(mean).astype(jnp.float32)
        return projected * jax.lax.rsqrt(jnp.square(projected).sum(axis=-1, keepdims=True) + 1e-12)

    def scale(self) -> jax.Array:
        """What cosines are multiplied by before the softmax over a batch: 1 over the learned temperature."""
        above = jax.nn.relu(self.log_scale - math.log(MAX_SCALE))
        return jnp.exp(self.log_scale - jax.lax.stop_gradient(above))  # at the limit it can still learn its way down

    def mlm_logits(self, hidden: jax.Array) -> jax.Array:
        """``hidden [..., D] -> [..., V]`` float32."""
        return self.mlm(hidden, self.text_embeddings.decode)

    def mpm_logits(self, hidden: jax.Array) -> jax.Array:
        """``hidden [..., D] -> [..., C]`` float32."""
        return self.mpm(hidden).astype(jnp.float32)

    def pooled(self, cls: jax.Array) -> jax.Array:
        """BERT's pooler: ``cls [B, D] -> [B, D]`` float32."""
        return jnp.tanh(self.pooler(cls)).astype(jnp.float32)

    def tia_logits(self, cls: jax.Array, means: jax.Array | None = None) -> jax.Array:
        """``cls [B, D] -> [B, 2]`` float32; index 1 means match.

        With the `means` [B, 2, D] of `encode_pair` their scaled cosine speaks for a match besides. Departs from the
        paper: towers that have learned to point alike where text and image match need not learn to say so at [CLS].
        """
        logits = self.tia(self.pooled(cls))
        if means is None:
            return logits
        cosine = self.vector(means).prod(axis=1).sum(axis=-1)
        return logits + self.scale() * jnp.stack([jnp.zeros_like(cosine), cosine], axis=-1)


def build_model(config: ModelConfig, vocabulary_size: int, patches: PatchNetwork) -> FashionBert:
    return FashionBert(
        vocabulary_size=vocabulary_size,
        text_tokens=config.text_tokens,
        num_patches=patches.num_patches,
        feature_size=patches.feature_size,
        embedding_dim=config.embedding_dim,
        tia_reads=config.tia_reads,
        shape=EncoderShape(
            num_layers=config.num_layers,
            width=config.width,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
            dtype=jnp.dtype(config.dtype),
            initializer_range=config.initializer_range,
            attention=config.attention,
            remat=config.remat,
            gated=config.cross_attention == "gated",
            gate_start=config.gate_start,
        ),
    )


def _whole_mask(text_mask: jax.Array, image: jax.Array) -> jax.Array:
    """``text_mask [B, T], image [B, P, D] -> [B, L]``: every patch takes part.

    By `jax.lax.concatenate`: of jnp's, jax2onnx 0.13 takes the first part's length for that of the whole.
    """
    return jax.lax.concatenate([text_mask, jnp.ones(image.shape[:2], bool)], 1)


def _mean(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the positions of `mask`: ``[B, L, D], [B, L] -> [B, D]``."""
    return jnp.where(mask[..., None], hidden, 0.0).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def match_score(tia_logits: jax.Array) -> jax.Array:
    """``[B, 2] -> [B]``: the logit difference, monotone in the probability of a match and never saturated."""
    return tia_logits[:, 1] - tia_logits[:, 0]
