"""Jigsaw of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): which of 24 orders the quarters of an image have."""

import dataclasses
from itertools import permutations

import jax
import jax.numpy as jnp

from fbjax.tasks.base import About, register_task
from fbjax.tasks.pictures.scales import Classification, Targets, shown

ORDERS = tuple(permutations(range(4)))


@register_task("jigsaw")
@dataclasses.dataclass(frozen=True)
class Jigsaw(Classification):
    """The features of scale 2 change places, which is the same as cutting the network's map anew."""

    scale, num_classes = 2, len(ORDERS)
    owns = ("jigsaw",)
    about = About(
        "Order of an image's quarters (jigsaw)",
        "the order of an image's quarters",
        "Loss of the question in which of 24 orders the quarters of an image are; 3.178 is guessing.",
        guide=3.1781,
    )

    def corrupt(self, key, example, spec):
        answers = jax.random.randint(key, (len(example.images),), 0, len(ORDERS))
        places = jnp.broadcast_to(self.places(spec), (len(answers), 4))
        rows = jnp.take_along_axis(places, jnp.array(ORDERS)[answers], axis=1)
        return example._replace(source=shown(example.source, places, rows)), Targets(places, answers)
