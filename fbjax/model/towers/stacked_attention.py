"""Stacked cross attention (SCAN, Lee et al. 2018, arXiv 1803.08024): scores of texts and images by their tokens.

Tokens of one side, the queries, attend to those of the other, the keys. Each query is compared with what it attends to,
and the cosines are pooled. Departs from the paper: regions are image tokens, not boxes of a detector.

Axis legend: T text tokens, P image tokens, E their size, Q queries and K keys, which are the one or the other.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Direction = Literal["text_to_image", "image_to_text"]
Pooling = Literal["logsumexp", "average"]
SMALLEST_SQUARE = 1e-8  # of a length that something is divided by
EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class StackedAttention:
    """How a text and an image are scored. Scales are the paper's lambda 1 and lambda 2; both sides have length 1."""

    direction: Direction
    pooling: Pooling
    attention_scale: float
    pooling_scale: float

    def scores(self, words: jax.Array, word_mask: jax.Array, regions: jax.Array) -> jax.Array:
        """``words [.., T, E], word_mask [.., T], regions [.., P, E] -> [..]``; the leading axes broadcast.

        ``words[:, None], word_mask[:, None], regions[None]`` gives every text with every image.
        """
        similarity = jnp.einsum("...te,...pe->...tp", words, regions, precision=EXACT)
        region_mask = jnp.ones(regions.shape[:-1], bool)
        if self.direction == "text_to_image":
            query_mask, keys, key_mask = word_mask, regions, region_mask
        else:
            similarity = similarity.swapaxes(-1, -2)
            query_mask, keys, key_mask = region_mask, words, word_mask
        gram = jnp.einsum("...ke,...le->...kl", keys, keys, precision=EXACT)
        attend = partial(attended_cosines, scale=self.attention_scale)
        # what is made of the similarities takes several times their memory: the backward pass makes it again
        relevance = jax.checkpoint(attend)(similarity, gram, query_mask, key_mask)
        return self.pooled(relevance, query_mask)

    def pooled(self, relevance: jax.Array, mask: jax.Array) -> jax.Array:
        """``relevance, mask [.., Q] -> [..]``: Eq. 6, ``log sum exp(lambda2 R) / lambda2``; or Eq. 7, the mean."""
        if self.pooling == "average":
            return jnp.where(mask, relevance, 0.0).sum(axis=-1) / mask.sum(axis=-1)
        scaled = jnp.where(mask, self.pooling_scale * relevance, -jnp.inf)
        return jax.nn.logsumexp(scaled, axis=-1) / self.pooling_scale


def attended_cosines(
    similarity: jax.Array, gram: jax.Array, query_mask: jax.Array, key_mask: jax.Array, scale: float
) -> jax.Array:
    """``similarity [.., Q, K], gram [.., K, K], query_mask [.., Q], key_mask [.., K] -> [.., Q]``.

    The cosine of a query with what it attends to, ``a = sum_k softmax_k(scale s'_qk) key_k``, where
    ``s'_qk = [s_qk]_+ / sqrt(sum_q [s_qk]_+^2)`` (Eqs. 1 to 4). All vectors have length 1. `gram`, the products of the
    keys, gives the length of `a`, which itself would take E / K times the memory. The authors' release has a leaky
    ReLU in place of the paper's threshold at 0.
    """
    both = query_mask[..., :, None] & key_mask[..., None, :]
    above = jnp.where(both, jax.nn.relu(similarity), 0.0)
    squares = jnp.square(above).sum(axis=-2, keepdims=True)
    normed = above * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_SQUARE))
    weights = jax.nn.softmax(jnp.where(key_mask[..., None, :], scale * normed, -jnp.inf), axis=-1)
    along = (weights * similarity).sum(axis=-1)
    length = (jnp.einsum("...qk,...kl->...ql", weights, gram, precision=EXACT) * weights).sum(axis=-1)
    return along * jax.lax.rsqrt(jnp.maximum(length, SMALLEST_SQUARE))
