"""Captioning: a product's text is predicted piece by piece, each from the image and the pieces before it.

``loss = - mean log p(piece i + 1 | image, pieces 0 .. i)`` over all pieces and [SEP] of the global batch: teacher
forcing under the sequence-to-sequence mask of UniLM (Dong et al. 2019, arXiv 1905.03197), whose first segment is the
image here. The head is that of mlm, and the same parameters where both tasks are trained.

Departs from Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): its captioning masks all words and predicts them at
once, by what its authors say; the code is not public. From UniLM: each position predicts the next piece; UniLM masks
some pieces of the text and predicts these.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.heads import MlmHead
from fbjax.tasks.base import CAPTION, About, Task, register_task

ARCHITECTURES = ("fashionbert", "kaleido", "vlbert")  # of one stream


@register_task("caption")
@dataclasses.dataclass(frozen=True)
class Caption(Task):
    """Cross-entropy of each next piece, [SEP] included. A batch weighs all its pieces alike, whatever their text."""

    owns = ("mlm",)
    writes_captions = True
    about = About(
        "Captioning (caption)",
        "the text of a product, piece by piece, from its picture",
        "Cross-entropy of each piece of a text, given the picture and the pieces before it. Blind guesses among the "
        "vocabulary's {vocabulary_size:,} pieces would cost {log_vocabulary:.1f}. It should fall steeply, then "
        "flatten.",
    )

    @property
    def views(self):
        return (CAPTION,)

    def check(self, config):
        model = config.model
        if model.architecture not in ARCHITECTURES:
            return [
                f"tasks.caption reads text and image in one stream, which model.architecture {model.architecture!r} "
                f"does not (use {', '.join(ARCHITECTURES)})"
            ]
        return []

    def heads(self, model, spec):
        return {"mlm": MlmHead(spec.vocabulary_size, model)}

    def initialise(self, model, text, image, means):
        self.caption_logits(model, text)

    def caption_logits(self, model, hidden: jax.Array) -> jax.Array:
        """Of the next piece: ``hidden [..., D] -> [..., V]`` float32."""
        return model.mlm(hidden, model.text_embeddings.decode)

    def corrupt(self, key, example, spec):
        return example, (example.word_ids >= 0).sum() + 1.0  # how many pieces it predicts, with [SEP]

    def count(self, targets):
        """Each product's weight for a piece, [B]: 1 over the number of predicted pieces in the global batch."""
        return jnp.full_like(targets, 1 / targets.sum())

    def loss(self, head, views, targets, batch):
        labels = batch.batch.ids[:, 1:]
        logits = head("caption_logits", views.caption[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right, weight = logits.argmax(axis=-1) == labels, targets[:, None] * (labels != PAD_ID)
        return (weight * losses).sum(), {"caption_right": (weight * right).sum()}

    def note(self, metrics):
        if "caption_right" not in metrics:
            return ""
        right, perplexity = metrics["caption_right"], math.exp(metrics["caption/loss"])
        return f"At the end {right:.1%} of the pieces were predicted correctly, with a perplexity of {perplexity:.1f}."
