"""Losses that contrast each text of a batch with all images, and each image with all texts.

All take ``[B, B]``, text i in row i, image j in column j and each product's own pair on the diagonal, and give [B].
`negatives` [B, B] is True where two products may be each other's negatives; all other pairs count nowhere.
"""

import jax
import jax.numpy as jnp

MARGIN = 0.2  # of VSE (Kiros et al. 2014) and VSE++ (Faghri et al. 2018)


def valid_negatives(group: jax.Array, ids: jax.Array) -> jax.Array:
    """``group [B], ids [B, T] -> [B, B]`` bool: True where text i may serve as a negative of image j.

    Not of its own product, nor of one that shares its group or its text: that would be no mistake.
    """
    return (group[:, None] != group) & (ids[:, None] != ids).any(axis=-1)


def cosine_matrix(texts: jax.Array, images: jax.Array) -> jax.Array:
    """``texts, images [B, E] -> [B, B]`` of vectors of length 1, in full float32."""
    return jnp.einsum("ie,je->ij", texts, images, precision=jax.lax.Precision.HIGHEST)


def info_nce(logits: jax.Array, negatives: jax.Array) -> jax.Array:
    """Cross-entropy of each product's own pair among its negatives, the mean of both directions.

    A product without a single negative in the batch has loss 0.
    """
    kept = negatives | jnp.eye(len(negatives), dtype=bool)
    logits = jnp.where(kept, logits, -jnp.inf)
    own = jnp.diagonal(logits)
    return jnp.asarray(sum(jax.nn.logsumexp(logits, axis=axis) - own for axis in (0, 1)) / 2)


def sigmoid_loss(logits: jax.Array, negatives: jax.Array) -> jax.Array:
    """``-log sigmoid(l_ii) - sum_j log sigmoid(-l_ij)``: is a pair a product's own? (Zhai et al. 2023, Eq. 1)."""
    own = jax.nn.softplus(-jnp.diagonal(logits))
    return own + jnp.where(negatives, jax.nn.softplus(logits), 0.0).sum(axis=1)


def hinge_loss(cosines: jax.Array, negatives: jax.Array, hardest: bool = False) -> jax.Array:
    """``sum_j [margin - s_ii + s_ij]_+``, or the maximum over j, both ways (Faghri et al. 2018, Eqs. 4 and 6)."""
    own, total = jnp.diagonal(cosines), jnp.zeros(len(cosines))
    for axis, mine in ((1, own[:, None]), (0, own[None])):
        cost = jnp.where(negatives, jnp.maximum(MARGIN - mine + cosines, 0.0), 0.0)
        total += cost.max(axis=axis) if hardest else cost.sum(axis=axis)
    return total


def hardest_from(cosines: jax.Array, negatives: jax.Array, step: jax.Array, start: int) -> jax.Array:
    """`hinge_loss` of all negatives before step `start`, of the hardest alone from then on. ``step [B]``."""
    return jnp.where(step < start, hinge_loss(cosines, negatives), hinge_loss(cosines, negatives, hardest=True))


def hits(logits: jax.Array, negatives: jax.Array) -> jax.Array:
    """In how many of both directions a product's own pair is above all its negatives, of 1; without any it is."""
    own, others = jnp.diagonal(logits), jnp.where(negatives, logits, -jnp.inf)
    return jnp.asarray(sum((own > others.max(axis=axis)).astype(jnp.float32) for axis in (0, 1)) / 2)
