"""The contrast of two towers over a batch: each text against all images, each image against all texts (task "itc").

Image-text contrastive learning as in CLIP (Radford et al. 2021, arXiv 2103.00020) and ALBEF (Li et al. 2021, arXiv
2107.07651), with towers that share their parameters as the paper's application does. Written over global arrays: on
any number of devices the whole global batch is contrasted.
"""

import jax
import jax.numpy as jnp


def valid_negatives(group: jax.Array, ids: jax.Array) -> jax.Array:
    """``group [B], ids [B, T] -> [B, B]`` bool: True where text i may serve as a negative of image j.

    Not of its own product, nor of one that shares its group or its text: that would be no mistake.
    """
    return (group[:, None] != group) & (ids[:, None] != ids).any(axis=-1)


def info_nce(texts: jax.Array, images: jax.Array, scale: jax.Array, apart: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each product's own pair among its negatives, the mean of both directions, and its hits.

    ``texts, images [B, E], apart [B, B] -> [B], [B]``. A product without a single negative in the batch has loss 0
    and counts as a hit.
    """
    cosines = jnp.einsum("ie,je->ij", texts, images, precision=jax.lax.Precision.HIGHEST)
    kept = apart | jnp.eye(len(apart), dtype=bool)
    logits = jnp.where(kept, scale * cosines, -jnp.inf)
    own = jnp.diagonal(logits)
    losses = sum(jax.nn.logsumexp(logits, axis=axis) - own for axis in (0, 1)) / 2
    others = jnp.where(apart, logits, -jnp.inf)
    hits = sum((own > others.max(axis=axis)).astype(jnp.float32) for axis in (0, 1)) / 2
    return losses, hits
