"""Same-style retrieval: a product's image, its text, and both, each against other products of the same style.

As in "Unified Vision-Language Representation Modeling for E-Commerce Same-Style Products Retrieval" (Chen et al. 2023,
arXiv 2302.05093): one encoder, with a side left out, makes a vector of each unit, all in one space. Its body could not
be read; its losses are those of the authors' public file, which gives no margins and no weights.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.tasks.base import IMAGE, PARTNER, PRODUCT, TEXT, About, register_task
from fbjax.tasks.towers import contrast
from fbjax.tasks.towers.embedding import Embedding

UNITS = (PRODUCT, IMAGE, TEXT)


@register_task("style")
@dataclasses.dataclass(frozen=True)
class SameStyle(Embedding):
    """Contrasts of each unit with the partners; groups of either side, and equal texts, are no negatives.

    `distinctiveness` and `locality` are the paper's further terms. Departs from the paper: its contrast is a hinge in
    one direction, with false negatives; here the form is a setting, both directions count, and negatives are checked.
    """

    image_share: float = setting(1.0, "weight of the contrast of images alone; that of whole products is 1", "[0, inf)")
    text_share: float = setting(1.0, "weight of the contrast of texts alone", "[0, inf)")
    distinctiveness: float = setting(
        0.0, "weight of a hinge that ties an image or a text alone to its own product, among the batch's", "[0, inf)"
    )
    locality: float = setting(
        0.0, "weight of equal cosines of image, text and product with the product's nearest partners", "[0, inf)"
    )
    neighbours: int = setting(10, "the nearest partners of locality", "[1, inf)")
    tolerance: float = setting(0.0, "squared differences of cosines that locality lets pass", "[0, inf)")

    reads_partners = True
    about = About(
        "Same style (style)",
        "vectors of texts, images and products, near to other products of the same style",
        "A product, its image and its text, each against the products that go with those of its batch. As a "
        "cross-entropy (form softmax), guessing among {batch_size:,} products would cost {log_batch:.1f} each.",
    )

    @property
    def views(self):
        return (PRODUCT, IMAGE, TEXT, PARTNER)

    def check(self, config):
        found = super().check(config)
        if self.locality and self.neighbours > config.train.batch_size:
            found.append(
                f"tasks.style.neighbours {self.neighbours} must be at most train.batch_size {config.train.batch_size}"
            )
        return found

    def loss(self, head, views, targets, batch):
        own, other = batch.batch, batch.batch.partner
        vectors = {unit: head("vector", getattr(views, unit)) for unit in UNITS}
        cosines = {unit: contrast.cosine_matrix(vectors[unit], head("vector", views.partner)) for unit in UNITS}
        negatives = other_styles(own.group, other.group, own.ids, other.ids)
        total, metrics = jnp.zeros(len(own.group)), {}
        for unit, share in zip(UNITS, (1.0, self.image_share, self.text_share), strict=True):
            losses, hits = self.contrasted(head("pair_logits", cosines[unit]), negatives, batch.step)
            total += share * losses
            metrics[f"style_{unit}_accuracy"] = batch.weight @ hits
        alone = UNITS[1:]
        if self.distinctiveness:
            apart = contrast.valid_negatives(own.group, own.ids)
            terms = (distinctiveness(contrast.cosine_matrix(vectors[u], vectors[PRODUCT]), apart) for u in alone)
            total += self.distinctiveness * sum(terms)
        if self.locality:
            terms = (locality(cosines[PRODUCT], cosines[u], self.neighbours, self.tolerance) for u in alone)
            total += self.locality * sum(terms)
        return batch.weight @ total, metrics


def other_styles(group: jax.Array, partner: jax.Array, ids: jax.Array, partner_ids: jax.Array) -> jax.Array:
    """``group, partner [B], ids, partner_ids [B, T] -> [B, B]`` bool: whether partner j may be product i's negative.

    It is neither of the group of product i or of its partner, nor does its text equal that of product i.
    """
    apart = (group[:, None] != partner) & (group[:, None] != group) & (partner[:, None] != partner)
    return apart & (ids[:, None] != partner_ids).any(axis=-1)


def distinctiveness(cosines: jax.Array, negatives: jax.Array) -> jax.Array:
    """``1/B sum_j [margin + s_ij - s_ii]_+``, [B]: of one side (rows) against whole products (columns) [B, B]."""
    cost = jnp.maximum(contrast.MARGIN + cosines - jnp.diagonal(cosines)[:, None], 0.0)
    return jnp.where(negatives, cost, 0.0).mean(axis=1)


def locality(whole: jax.Array, alone: jax.Array, neighbours: int, tolerance: float) -> jax.Array:
    """The mean of ``[(s_ij - t_ij)^2 - tolerance]_+``, [B], over the `neighbours` j with the largest s_ij.

    ``whole, alone [B, B]``: cosines of a product s, and of one of its sides t, with the partners.
    """
    _, nearest = jax.lax.top_k(jax.lax.stop_gradient(whole), neighbours)
    gaps = jnp.take_along_axis(jnp.square(whole - alone), nearest, axis=1)
    return jnp.maximum(gaps - tolerance, 0.0).mean(axis=1)
