"""Image-text contrast: each text of a batch against all images, and each image against all texts.

As in CLIP (Radford et al. 2021, arXiv 2103.00020) and ALBEF (Li et al. 2021, arXiv 2107.07651), with two towers that
share their parameters as the paper's application does; or as in SigLIP (Zhai et al. 2023, arXiv 2303.15343) or VSE
(Kiros et al. 2014, arXiv 1411.2539). Written over global arrays: on any number of devices, in any number of
micro-batches, the whole global batch is contrasted.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.linear import unit
from fbjax.tasks.base import IMAGE, TEXT, About, register_task
from fbjax.tasks.towers import contrast
from fbjax.tasks.towers.embedding import Embedding


@register_task("itc")
@dataclasses.dataclass(frozen=True)
class ImageTextContrast(Embedding):
    """A contrast over the batch, both directions; a product's own group and equal texts are no negatives.

    With `towers` an encoder learns what they lack (stacking, Wolpert 1992). These have not seen its products, so that
    they err as on new ones (cross-fitting, Chernozhukov et al. 2018, arXiv 1608.00060). Whether that matters was not
    settled: docs/lab/winning.md.
    """

    towers: str = setting(
        "",
        "a workdir of towers that were trained on the other half of the groups (train.half): their logits are added to "
        "those of the encoder, which learns what they lack; '': none",
        is_path=True,
    )
    several_images = True
    about = About(
        "Contrast of texts and images (itc)",
        "vectors of texts, images and products, for a search index",
        "Each text's own picture against those of its batch, and the other way round. As a cross-entropy (form "
        "softmax), guessing among {batch_size:,} products would cost {log_batch:.1f}.",
    )

    @property
    def views(self):
        return (TEXT, IMAGE)

    def check(self, config):
        if not self.towers or (config.train.half and self.reads_encoder and self.form == "softmax"):
            return super().check(config)
        return [
            f"tasks.itc.towers {self.towers} is built on by an encoder, by softmax, on products that these towers have "
            "not seen: set tasks.itc.branches 'encoder' or 'both', form 'softmax', and train.half to the half that "
            "they were not trained on"
        ]

    def encoder_vector(self, model, reading) -> jax.Array:
        """The encoder's vector [..., E] alone, such that a text times an image is its part of their logit."""
        scale = self._scale(model) * (jnp.exp(model.log_share) if self.branches == "both" else 1.0)
        return jnp.sqrt(scale) * unit(model.projection(reading.mean).astype(jnp.float32))

    def loss(self, head, views, targets, batch):
        negatives = contrast.valid_negatives(batch.batch.group, batch.batch.ids)
        if (towers := batch.batch.towers) is None:
            cosines = contrast.cosine_matrix(head("vector", views.text), head("vector", views.image))
            logits = head("pair_logits", cosines)
        else:
            own = contrast.cosine_matrix(head("encoder_vector", views.text), head("encoder_vector", views.image))
            logits = own + contrast.cosine_matrix(towers[:, 0], towers[:, 1])
        losses, hits = self.contrasted(logits, negatives, batch.step)
        return batch.weight @ losses, {"itc_accuracy": batch.weight @ hits}
