"""What Kaleido-BERT's tasks share: each changes the places of one scale of an image, in true and false pairs alike, and
learns from true pairs."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fbjax.model.encoder import dense
from fbjax.model.grids.cells import first_cell
from fbjax.tasks.base import PAIR, Task
from fbjax.tasks.masking import by_rank
from fbjax.tasks.mpm import patch_divergence


class Targets(NamedTuple):
    """Of n images: the places that the loss reads, and what was done to them."""

    places: jax.Array  # [n, R] int32, among the image tokens
    answers: Any = ()  # [n] int32: the class


@dataclasses.dataclass(frozen=True)
class PictureTask(Task):
    """A task over the places of `scale`."""

    scale: ClassVar[int]
    reads_variants: ClassVar[bool] = False  # whether it shows rows of `patches.variants`
    predicts_at = "image"

    @property
    def views(self):
        return (PAIR,)

    def check(self, config):
        patches, found = config.patches, []
        if self.scale not in patches.scales:
            found.append(
                f"task {self.name} reads scale {self.scale}, which is not in patches.scales {patches.scales} (add it)"
            )
        if self.reads_variants and not patches.variants:
            found.append(f"task {self.name} shows turned or grey pictures: set patches.variants to true")
        return found

    def places(self, spec) -> jax.Array:
        """The places [s s] of this scale among the image tokens."""
        return first_cell(spec.scales, self.scale) + jnp.arange(self.scale**2)

    def positions(self, targets, num_text):
        return num_text + targets.places


@dataclasses.dataclass(frozen=True)
class Classification(PictureTask):
    """Cross-entropy over `num_classes`, of the scale's hidden states side by side."""

    num_classes: ClassVar[int]
    rearranges = True

    def heads(self, model, spec):
        return {self.name: dense(model, self.num_classes, (None, None), name=self.name)}

    def initialise(self, model, text, image, means):
        self.logits(model, image[:, : self.scale**2])

    def logits(self, model, hidden: jax.Array) -> jax.Array:
        """``hidden [.., s s, D] -> [.., num_classes]`` float32."""
        return getattr(model, self.name)(hidden.reshape(*hidden.shape[:-2], -1)).astype(jnp.float32)

    def loss(self, head, views, targets, batch):
        logits, answers = head("logits", views.pairs.hidden[:, 0]), targets.answers[:, 0]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
        right = (logits.argmax(axis=-1) == answers).astype(jnp.float32)
        return batch.weight @ losses, {f"{self.name}_accuracy": batch.weight @ right}


@dataclasses.dataclass(frozen=True)
class Restoration(PictureTask):
    """`patch_divergence` between the unchanged features of the changed places and a linear map of hidden states."""

    guided = "image"

    def heads(self, model, spec):
        return {self.name: dense(model, spec.feature_size, ("embed", "feature"), use_bias=False, name=self.name)}

    def initialise(self, model, text, image, means):
        self.logits(model, image)

    def logits(self, model, hidden: jax.Array) -> jax.Array:
        """``hidden [.., D] -> [.., C]`` float32."""
        return getattr(model, self.name)(hidden).astype(jnp.float32)

    def loss(self, head, views, targets, batch):
        target = jnp.take_along_axis(views.pairs.features[:, 0], targets.places[:, 0, :, None], axis=1)
        losses = patch_divergence(target, head("logits", views.pairs.hidden[:, 0]))
        return batch.weight @ losses.mean(axis=1), {}

    def drawn(self, key, example, spec, count: int) -> jax.Array:
        """`count` places of the scale for each image, [n, count] in rising order."""
        keys, places = jax.random.split(key, len(example.images)), self.places(spec)
        ranks = example.guide and example.guide.patches
        return jnp.stack([jnp.sort(by_rank(jax.random.permutation(k, places), ranks)[:count]) for k in keys])


def shown(source: jax.Array, places: jax.Array, rows: jax.Array) -> jax.Array:
    """`source` [n, P] with ``rows [n, R]`` at ``places [n, R]``."""
    return source.at[jnp.arange(len(source))[:, None], places].set(rows)
