"""What a task is that says whether two sides belong together, from what the encoder makes of them at [CLS].

A run has one such task: it owns BERT's pooler and the head on it.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.encoder import dense, zeros
from fbjax.model.fashionbert import Reading
from fbjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Matching(Task):
    """A pooler and two logits, of which index 1 means match."""

    head: Literal["cls", "cls+cosine", "product"] = setting(
        "cls",
        "what decides: [CLS] (the paper); [CLS] and the scaled cosine of the means over text and over image; or the "
        "product of [CLS] and the token of the whole image, each pooled (product, ViLBERT)",
    )
    owns = ("pooler", "text_pooler", "image_pooler", "tia")
    scores_pairs = True

    @property
    def reads_means(self):
        return self.head == "cls+cosine"

    @property
    def reads_firsts(self):
        return self.head == "product"

    def check(self, config):
        others = [name for name, task in config.tasks.items() if task.scores_pairs and name != self.name]
        if others and self.name < min(others):  # said once
            return [f"tasks {self.name} and {', '.join(others)} each have the run's match head: take one of them"]
        if self.reads_means and not any(task.embeds and not task.reads_apart for task in config.tasks.values()):
            return [
                f"tasks.{self.name}.head 'cls+cosine' compares vectors, which no task here makes: add itc, by its "
                "encoder alone (or use 'cls')"
            ]
        if self.reads_firsts and not config.patches.whole_image:
            return [
                f"tasks.{self.name}.head 'product' reads the token of the whole image: set patches.whole_image to true "
                "(or use 'cls')"
            ]
        return []

    def heads(self, model, spec):
        # a random head would hide what the cosine says: it starts at 0
        initializer = zeros if self.reads_means else None
        full = dataclasses.replace(model, dtype="float32")
        poolers = ("text_pooler", "image_pooler") if self.reads_firsts else ("pooler",)
        return {name: dense(model, model.width, ("embed", None), name=name) for name in poolers} | {
            "tia": dense(full, 2, ("embed", None), name="tia", initializer=initializer),
        }

    def initialise(self, model, text, image, means):
        self.match_logits(model, text[:, 0], means)

    def pooled(self, model, cls: jax.Array) -> jax.Array:
        """BERT's pooler: ``cls [B, D] -> [B, D]`` float32."""
        return jnp.tanh(model.pooler(cls)).astype(jnp.float32)

    def match_logits(self, model, cls: jax.Array, means: jax.Array | None = None) -> jax.Array:
        """``cls [B, D] -> [B, 2]`` float32; index 1 means match.

        With the `means` [B, 2, D] their scaled cosine speaks for a match too. Departs from the paper: an encoder that
        makes like vectors of text and image where they match need not learn to say so at [CLS].

        The head 'product' reads the first states in place of the means: ``relu(W text) * relu(V image)``, as in ViLBERT
        (Lu et al. 2019, arXiv 1908.02265). Departs from it: no dropout before the two logits.
        """
        if self.reads_firsts and means is not None:
            text, image = nn.relu(model.text_pooler(means[:, 0])), nn.relu(model.image_pooler(means[:, 1]))
            return model.tia((text * image).astype(jnp.float32))
        logits = model.tia(self.pooled(model, cls))
        if not self.reads_means:
            return logits
        cosine = model.vector(Reading(means)).prod(axis=1).sum(axis=-1)
        return logits + model.logit_scale() * jnp.stack([jnp.zeros_like(cosine), cosine], axis=-1)

    def shifted(self, params: dict, score: float) -> dict:
        """The model's parameters with `score` taken off every match score."""
        bias = params["tia"]["bias"] + jnp.array([score / 2, -score / 2], jnp.float32)
        return params | {"tia": params["tia"] | {"bias": bias}}
