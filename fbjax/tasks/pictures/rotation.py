"""Rotation of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): by how many quarter turns an image is rotated."""

import dataclasses

import jax
import jax.numpy as jnp

from fbjax.tasks.base import About, register_task
from fbjax.tasks.pictures.scales import Classification, Targets, shown


@register_task("rotation")
@dataclasses.dataclass(frozen=True)
class Rotation(Classification):
    """The feature of scale 1 is that of the picture turned by 0, 90, 180 or 270 degrees."""

    scale, num_classes = 1, 4
    owns = ("rotation",)
    reads_variants = True
    about = About(
        "Rotation of an image (rotation)",
        "by how much an image is turned",
        "Loss of the question by which of four angles an image is turned; 1.386 is guessing.",
        guide=1.3863,
    )

    def corrupt(self, key, example, spec):
        answers = jax.random.randint(key, (len(example.images),), 0, self.num_classes)
        places = jnp.broadcast_to(self.places(spec), (len(answers), 1))
        turned = spec.num_patches + answers[:, None] - 1  # the three turned rows come first of the variants
        source = shown(example.source, places, jnp.where(answers[:, None] == 0, places, turned))
        return example._replace(source=source), Targets(places, answers)
