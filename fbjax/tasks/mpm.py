"""Masked patch modelling (paper, section 3.3): patches are hidden, the distribution of their features predicted."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.encoder import dense
from fbjax.model.grids.pictures import are_there
from fbjax.tasks import masking
from fbjax.tasks.base import NEGATIVE_PAIR, PAIR, About, Task, register_task


class Slots(NamedTuple):
    """Hidden patches where their number differs from product to product."""

    positions: jax.Array  # [B, n, K]
    counts: jax.Array  # [B, n, K] bool: whether a slot counts


@register_task("mpm")
@dataclasses.dataclass(frozen=True)
class MaskedPatchModelling(Task):
    """Targets are positions [B, n, K] of hidden patches. The token of the whole image is no patch and never hidden.

    They are features of the picture that the model sees: `patches.augment` keeps them true. With several pictures of a
    product they are `Slots`: a share of the patches that it has.
    """

    rate: float = setting(0.10, "share of patches masked", "(0, 1)")
    on_negatives: bool = setting(True, "predict on negative pairs too (the release does; the paper is silent)")

    owns = ("mpm",)
    predicts_at = guided = "image"
    several_images = True
    about = About(
        "Hidden image patches (mpm)",
        "hidden patches",
        "Distance (KL divergence) between a hidden patch's features and the model's guess; 0 would be a perfect "
        "guess. It should fall and settle.",
    )

    @property
    def views(self):
        return (PAIR, NEGATIVE_PAIR) if self.on_negatives else (PAIR,)

    def heads(self, model, spec):
        return {"mpm": dense(model, spec.feature_size, ("embed", "feature"), use_bias=False, name="mpm")}

    def initialise(self, model, text, image, means):
        self.logits(model, image)

    def logits(self, model, hidden: jax.Array) -> jax.Array:
        """``hidden [..., D] -> [..., C]`` float32."""
        return model.mpm(hidden).astype(jnp.float32)

    def corrupt(self, key, example, spec):
        keys = jax.random.split(key, len(example.images))
        if spec.num_images > 1:
            return self._of_several(keys, example, spec)
        first, count = spec.first_patch, spec.num_patches - spec.first_patch
        ranks = example.guide and example.guide.patches[first:]
        chosen = first + jnp.stack([masking.choose_patches(k, count, self.rate, ranks) for k in keys])
        hidden = jax.nn.one_hot(chosen, spec.num_patches, dtype=bool).any(axis=1)
        return example._replace(hidden=example.hidden | hidden), chosen

    def _of_several(self, keys, example, spec):
        """The same where some pictures are not there: ``example.images [n, P, C]`` are features."""
        is_patch = jnp.arange(spec.num_patches) % (spec.num_patches // spec.num_images) >= spec.first_patch
        there = are_there(example.images) & is_patch
        chosen, counts = jax.vmap(lambda key, there: masking.choose_of_there(key, there, self.rate))(keys, there)
        hidden = jax.nn.one_hot(chosen, spec.num_patches, dtype=bool).any(axis=1)
        return example._replace(hidden=example.hidden | hidden), Slots(chosen, counts)

    def positions(self, targets, num_text):
        return num_text + (targets.positions if isinstance(targets, Slots) else targets)

    def loss(self, head, views, targets, batch):
        pairs = views.pairs
        num_pairs = pairs.hidden.shape[1]
        positions = targets.positions if isinstance(targets, Slots) else targets
        target = jnp.take_along_axis(pairs.features, positions[:, :num_pairs, :, None], axis=2)
        losses = patch_divergence(target, head("logits", pairs.hidden))
        if not isinstance(targets, Slots):
            return batch.weight @ losses.mean(axis=(1, 2)), {}
        counts = targets.counts[:, :num_pairs]
        losses = jnp.where(counts, losses, 0.0).sum(axis=2) / counts.sum(axis=2)
        return batch.weight @ losses.mean(axis=1), {}


def patch_divergence(target: jax.Array, prediction: jax.Array) -> jax.Array:
    """``KL(softmax(target) || softmax(prediction))`` over the last axis: ``[..., C] -> [...]``.

    The direction of the authors' release; Eq. 2 prints the arguments the other way round.
    """
    log_target, log_prediction = jax.nn.log_softmax(target), jax.nn.log_softmax(prediction)
    return (jnp.exp(log_target) * (log_target - log_prediction)).sum(axis=-1)
