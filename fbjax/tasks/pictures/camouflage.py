"""Camouflage of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): which of nine patches is another product's."""

import dataclasses

import jax
import jax.numpy as jnp

from fbjax.tasks.base import About, register_task
from fbjax.tasks.pictures.scales import Classification, Targets, shown


@register_task("camouflage")
@dataclasses.dataclass(frozen=True)
class Camouflage(Classification):
    """One patch of scale 3 is that of the negative's image, at the same place; the negative's is the product's."""

    scale, num_classes = 3, 9
    owns = ("camouflage",)
    needs_negative, guided = True, "image"
    about = About(
        "The patch of another product (camouflage)",
        "which patch is another product's",
        "Loss of the question which of nine patches comes from another product; 2.197 is guessing.",
        guide=2.1972,
    )

    def corrupt(self, key, example, spec):
        answers = jax.random.randint(key, (len(example.images),), 0, self.num_classes)
        places = self.places(spec)
        if example.guide is not None:  # a place of the lowest rank, each as likely
            ranks = example.guide.patches[places]
            first, drawn = ranks == ranks.min(), jax.random.fold_in(key, 1)
            among = jax.random.categorical(drawn, jnp.where(first, 0.0, -jnp.inf), shape=answers.shape)
            answers = jnp.where(first[answers], answers, among)
        changed = places[answers][:, None]
        source = shown(example.source, changed, spec.num_rows + changed)
        return example._replace(source=source), Targets(jnp.broadcast_to(places, (len(answers), len(places))), answers)
