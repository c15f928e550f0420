"""Text-image alignment (paper, section 3.3; elsewhere image-text matching): does a text belong to an image?

The paper's word is kept, as for the two other tasks: its tables, the release's logs and our checkpoints use it.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from fbjax.config.settings import setting
from fbjax.tasks.base import NEGATIVE_PAIR, PAIR, About, register_task
from fbjax.tasks.matching import Matching


@register_task("tia")
@dataclasses.dataclass(frozen=True)
class TextImageAlignment(Matching):
    """Cross-entropy of "match" for a product's own image and "no match" for a negative's."""

    negatives: Literal["table", "batch"] = setting(
        "table",
        "where a text's negative image comes from: the table, mostly of the same category (the paper); or the batch, "
        "drawn by how near the towers of itc put it, so that what they confuse comes first (batch, as in ALBEF)",
    )
    random_negatives_start: float = setting(0.0, "share of negatives from any category at step 0 ..", "[0, 1]")
    random_negatives_end: float = setting(0.0, ".. which changes linearly to this ..", "[0, 1]")
    random_negatives_steps: int = setting(0, ".. over so many steps; the rest are of the same category", "[0, inf)")

    several_images = True
    about = About(
        "Text-image alignment (tia)",
        "whether a text and an image match",
        "Loss of the question whether text and picture belong together; .693 is guessing. A plateau there at the "
        "start is normal, a run that never leaves it has learned no matching.",
        guide=0.6931,
    )

    @property
    def views(self):
        return (PAIR, NEGATIVE_PAIR)

    @property
    def needs_negative(self):
        return self.negatives == "table"

    @property
    def mines_negatives(self):
        return self.negatives == "batch"

    def check(self, config):
        if self.mines_negatives and not any(task.embeds for task in config.tasks.values()):
            return ["tasks.tia.negatives 'batch' asks towers, which no task here trains: add itc (or use 'table')"]
        return super().check(config)

    def loss(self, head, views, targets, batch):
        cls, means = views.pairs.cls, views.pairs.means
        means = None if means is None else means.reshape(-1, 2, cls.shape[-1])
        matches = jnp.broadcast_to(jnp.array([1, 0]), cls.shape[:2])
        logits = head("match_logits", cls.reshape(-1, cls.shape[-1]), means).reshape(*matches.shape, 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, matches)
        right = (logits.argmax(axis=-1) == matches).mean(axis=1)
        return batch.weight @ losses.mean(axis=1), {"tia_accuracy": batch.weight @ right}

    def random_share(self, step: int) -> float:
        """Share of negatives from any category at `step`."""
        done = min(1.0, step / self.random_negatives_steps) if self.random_negatives_steps else 1.0
        return self.random_negatives_start + (self.random_negatives_end - self.random_negatives_start) * done

    def note(self, metrics):
        said = ""
        if (share := metrics.get("tia_accuracy")) is not None:
            said += f"At the end {share:.1%} of the training pairs were classified correctly. "
        if self.random_negatives_steps and self.random_negatives_start > self.random_negatives_end:
            said += f"Negative pairs grow harder until step {self.random_negatives_steps:,}."
        return said.strip()
