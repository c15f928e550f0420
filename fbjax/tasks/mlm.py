"""Masked language modelling (paper, section 3.3): whole words of the text are hidden, their pieces predicted."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from fbjax.config.settings import setting
from fbjax.model.heads import MlmHead
from fbjax.tasks import masking
from fbjax.tasks.base import NEGATIVE_PAIR, PAIR, About, Task, register_task


@flax.struct.dataclass
class Pieces:
    """The pieces of B products that were chosen, in M slots each."""

    positions: jax.Array  # [B, M]
    labels: jax.Array  # [B, M]: their ids
    weight: jax.Array  # [B, M]: 1 over the number of chosen pieces in the global batch; 0 where a slot is empty


@register_task("mlm")
@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelling(Task):
    """Both pairs of a product are masked alike: were only true ones masked, [MASK] would tell them apart."""

    rate: float = setting(0.15, "share of text pieces masked, whole words at a time", "(0, 1)")
    on_negatives: bool = setting(True, "predict on negative pairs too (the release does; the paper is silent)")

    owns = ("mlm",)
    predicts_at = guided = "text"
    several_images = True
    about = About(
        "Hidden words (mlm)",
        "hidden text pieces",
        "Cross-entropy of words that were hidden from the model. Blind guesses among the vocabulary's "
        "{vocabulary_size:,} pieces would cost {log_vocabulary:.1f}. It should fall steeply, then flatten.",
    )

    @property
    def views(self):
        return (PAIR, NEGATIVE_PAIR) if self.on_negatives else (PAIR,)

    def heads(self, model, spec):
        return {"mlm": MlmHead(spec.vocabulary_size, model)}

    def initialise(self, model, text, image, means):
        self.logits(model, text)

    def logits(self, model, hidden: jax.Array) -> jax.Array:
        """``hidden [..., D] -> [..., V]`` float32."""
        return model.mlm(hidden, model.text_embeddings.decode)

    def corrupt(self, key, example, spec):
        ranks = example.guide and example.guide.words
        ids, positions, valid = masking.mask_text(
            key, example.ids, example.word_ids, self.rate, spec.mask_id, spec.vocabulary_size, ranks
        )
        return example._replace(ids=ids), Pieces(positions, example.ids[positions], valid)

    def count(self, targets):
        return targets.replace(weight=targets.weight / jnp.maximum(targets.weight.sum(), 1))

    def positions(self, targets, num_text):
        return targets.positions[:, None]

    def loss(self, head, views, targets, batch):
        logits = head("logits", views.pairs.hidden)
        labels = jnp.broadcast_to(targets.labels[:, None], logits.shape[:-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (targets.weight * losses.mean(axis=1)).sum(), {}
