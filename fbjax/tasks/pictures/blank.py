"""Blank to colour of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): features of patches that are hidden."""

import dataclasses

import jax

from fbjax.tasks.base import About, register_task
from fbjax.tasks.pictures.scales import Restoration, Targets


@register_task("blank")
@dataclasses.dataclass(frozen=True)
class Blank(Restoration):
    """Three patches of scale 5 are hidden. The patches of other scales still show what lies there."""

    scale = 5
    owns = ("blank",)
    about = About(
        "Blank image patches (blank)",
        "hidden patches of the finest scale",
        "Distance (KL divergence) between a hidden patch's features and the model's guess; 0 would be a perfect guess.",
    )

    def corrupt(self, key, example, spec):
        chosen = self.drawn(key, example, spec, 3)
        hidden = jax.nn.one_hot(chosen, spec.num_patches, dtype=bool).any(axis=1)
        return example._replace(hidden=example.hidden | hidden), Targets(chosen)
