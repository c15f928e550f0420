"""Token-patch alignment: which word goes to which image patch, by optimal transport. The authors name it future work.

UNITER's word-region alignment (Chen et al. 2020, arXiv 1909.11740, section 3.2) on patches::

    cost[t, p] = 1 - cos(hidden state of word t, hidden state of patch p)
    plan       = the cheapest way to move all words onto all patches, by IPOT, held constant
    distance   = sum over t, p of plan[t, p] cost[t, p]
    loss       = max(0, margin + distance of the own image - distance of the negative image)

Departs from the paper: UNITER's loss is the plain difference of the two distances, of all pairs of a batch. Here each
text is compared with its own two images, and a pair that is told apart by the margin no longer counts: the plain
difference goes on pushing pairs of one category apart, which share most words and patches. The distances lie between 0
and 2, so that a margin of 2 has UNITER's gradient. [CLS], [SEP] and the token of the whole image take no part. UNITER
aligns whole inputs; here hidden words and patches take part by what the encoder makes of them, as tia reads them.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.linear import unit
from fbjax.tasks.alignment.transport import transport_distance, transport_plan
from fbjax.tasks.base import NEGATIVE_PAIR, PAIR, About, Task, register_task


@flax.struct.dataclass
class Aligned:
    """What is aligned, of B products."""

    is_word: jax.Array  # [B, T] bool
    patches: jax.Array  # [B, P] int32: image tokens, without that of the whole image


@register_task("tpa")
@dataclasses.dataclass(frozen=True)
class TokenPatchAlignment(Task):
    """A hinge between a text's distances to its own image and to a negative's. No parameters of its own."""

    margin: float = setting(
        0.2, "by which a text should be nearer to its own image than to a negative's; 2: always (UNITER)", "(0, 2]"
    )
    step_size: float = setting(0.5, "of the transport's proximal steps: the smaller, the nearer to exact", "(0, inf)")
    num_steps: int = setting(50, "of the transport: the more, the nearer to exact", "[1, inf)")

    aligns_words = True
    about = About(
        "Token-patch alignment (tpa)",
        "which word goes to which patch",
        "A hinge between a text's transport distances to its own image and to another one. It starts near the margin, "
        "where the two distances are alike, and should fall.",
    )

    @property
    def views(self):
        return (PAIR, NEGATIVE_PAIR)

    def check(self, config):
        if any(task.needs_negative or task.mines_negatives for task in config.tasks.values()):
            return []
        return [f"tasks.{self.name} compares a text with two images, and no task here brings a negative: add tia"]

    def corrupt(self, key, example, spec):
        return example, Aligned(example.word_ids >= 0, jnp.arange(spec.first_patch, spec.num_patches))

    def positions(self, targets, num_text):
        words = jnp.broadcast_to(jnp.arange(targets.is_word.shape[1]), targets.is_word.shape)
        return jnp.concatenate([words, num_text + targets.patches], axis=1)[:, None]

    def alignment(
        self, model, words: jax.Array, word_mask: jax.Array, patches: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(cost, plan), each [.., T, P] float32, of hidden states ``words [.., T, D], patches [.., P, D]`` of pairs."""
        words, patches = (unit(x.astype(jnp.float32)) for x in (words, patches))
        cost = 1 - jnp.einsum("...td,...pd->...tp", words, patches)
        return cost, transport_plan(cost, word_mask, self.step_size, self.num_steps)

    def loss(self, head, views, targets, batch):
        hidden, (b, t) = views.pairs.hidden, targets.is_word.shape
        is_word = jnp.broadcast_to(targets.is_word[:, None], (b, hidden.shape[1], t))
        own, other = transport_distance(*head("alignment", hidden[:, :, :t], is_word, hidden[:, :, t:])).T
        losses = jnp.maximum(0, self.margin + own - other)
        return batch.weight @ losses, {"tpa_accuracy": batch.weight @ (own < other)}

    def note(self, metrics):
        if (share := metrics.get("tpa_accuracy")) is None:
            return ""
        return f"At the end {share:.1%} of the training texts were nearer to their own image than to the negative."
