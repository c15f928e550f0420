"""Image-text contrast: each text of a batch against all images, and each image against all texts.

As in CLIP (Radford et al. 2021, arXiv 2103.00020) and ALBEF (Li et al. 2021, arXiv 2107.07651), with two towers that
share their parameters as the paper's application does. Written over global arrays: on any number of devices, in any
number of micro-batches, the whole global batch is contrasted.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.encoder import dense
from fbjax.tasks.base import IMAGE, TEXT, About, Task, register_task

START_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of cosines (Radford et al. 2021)


@register_task("itc")
@dataclasses.dataclass(frozen=True)
class ImageTextContrast(Task):
    """InfoNCE over the batch, both directions; a product's own group and equal texts are no negatives."""

    embedding_dim: int = setting(256, "E, of the vectors of texts, images and products (64 to 512)", "[1, inf)")

    owns = ("projection", "log_scale")
    whole_batch = True
    embeds = True
    about = About(
        "Contrast of texts and images (itc)",
        "vectors of texts, images and products, for a search index",
        "Cross-entropy of each text's own picture among those of its batch, and the other way round; guessing "
        "among {batch_size:,} products would cost {log_batch:.1f}.",
    )

    @property
    def views(self):
        return (TEXT, IMAGE)

    def heads(self, model, spec):
        def log_scale(module: nn.Module) -> Any:
            start = nn.with_logical_partitioning(nn.initializers.constant(math.log(START_SCALE)), ())
            return module.param("log_scale", start, ())

        projection = dense(model, self.embedding_dim, ("embed", None), use_bias=False, name="projection")
        return {"projection": projection, "log_scale": log_scale}

    def initialise(self, model, text, image, means):
        self.vector(model, text[:, 0])

    def vector(self, model, mean: jax.Array) -> jax.Array:
        """Means [..., D] projected to vectors of length 1, [..., E] float32."""
        projected = model.projection(mean).astype(jnp.float32)
        return projected * jax.lax.rsqrt(jnp.square(projected).sum(axis=-1, keepdims=True) + 1e-12)

    def logit_scale(self, model) -> jax.Array:
        """What cosines are multiplied by before the softmax over a batch: 1 over the learned temperature."""
        above = jax.nn.relu(model.log_scale - math.log(MAX_SCALE))
        return jnp.exp(model.log_scale - jax.lax.stop_gradient(above))  # at the limit it can still learn its way down

    def loss(self, head, views, targets, batch):
        text, image = head("vector", views.text), head("vector", views.image)
        negatives = valid_negatives(batch.batch.group, batch.batch.ids)
        losses, hits = info_nce(text, image, head("logit_scale"), negatives)
        return batch.weight @ losses, {"itc_accuracy": batch.weight @ hits}


def valid_negatives(group: jax.Array, ids: jax.Array) -> jax.Array:
    """``group [B], ids [B, T] -> [B, B]`` bool: True where text i may serve as a negative of image j.

    Not of its own product, nor of one that shares its group or its text: that would be no mistake.
    """
    return (group[:, None] != group) & (ids[:, None] != ids).any(axis=-1)


def info_nce(
    texts: jax.Array, images: jax.Array, scale: jax.Array, negatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each product's own pair among its negatives, the mean of both directions, and its hits.

    ``texts, images [B, E], negatives [B, B] -> [B], [B]``. A product without a single negative in the batch has loss 0
    and counts as a hit.
    """
    cosines = jnp.einsum("ie,je->ij", texts, images, precision=jax.lax.Precision.HIGHEST)
    kept = negatives | jnp.eye(len(negatives), dtype=bool)
    logits = jnp.where(kept, scale * cosines, -jnp.inf)
    own = jnp.diagonal(logits)
    losses = sum(jax.nn.logsumexp(logits, axis=axis) - own for axis in (0, 1)) / 2
    others = jnp.where(negatives, logits, -jnp.inf)
    hits = sum((own > others.max(axis=axis)).astype(jnp.float32) for axis in (0, 1)) / 2
    return jnp.asarray(losses), jnp.asarray(hits)
