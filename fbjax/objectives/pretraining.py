"""The pretraining objective {mlm, mpm, tia} on a Batch (paper, sections 3.3 and 3.4): K = 3 losses, nothing of weights.

An objective is a set of named task losses: it has `tasks`, their names in order, ``losses(params, frozen, batch, key)``
and ``shared(gradients)``, the part that every task's gradient reaches.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from fbjax.batch import Batch
from fbjax.config import TaskConfig
from fbjax.model.fashionbert import FashionBert
from fbjax.model.patches import PatchNetwork
from fbjax.objectives import masking

SHARED = ("text_embeddings", "image_embeddings", "encoder")  # the pooler serves tia alone, as the heads do their task


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """MLM, MPM and TIA over the true and the mismatched pair of each product."""

    model: FashionBert
    patches: PatchNetwork
    config: TaskConfig
    mask_id: int

    tasks: ClassVar[tuple[str, ...]] = ("mlm", "mpm", "tia")

    def losses(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        """Losses [3], each a mean over the global batch, and metrics.

        `params` and `frozen` together hold "fashionbert" and "patches". Both pairs of a product are masked alike,
        true or not: were only true pairs masked, [MASK] would tell them apart.
        """
        variables = {**frozen, **params}
        key_masks, key_dropout = jax.random.split(key)
        ids, text_positions, text_valid, patch_positions = self._draw_masks(key_masks, batch)

        features = self._features(variables["patches"], batch)  # [B, 2, P, C]
        hide = jax.nn.one_hot(patch_positions, self.patches.num_patches, dtype=bool).any(axis=2)  # [B, 2, P]
        hidden = self._encode(
            variables["fashionbert"],
            key_dropout,
            ids,
            batch.text_mask,
            jnp.where(hide[..., None], 0.0, features),
            text_positions,
            patch_positions,
        )  # [B, 2, 1 + M + K, D]

        head = partial(self.model.apply, {"params": variables["fashionbert"]})
        pairs = 2 if self.config.mask_mismatched else 1  # the true pair comes first
        num_slots = text_positions.shape[-1]

        logits = head(hidden[:, :pairs, 1 : 1 + num_slots], method="mlm_logits")
        labels = jnp.take_along_axis(batch.ids, text_positions, axis=1)[:, None]
        mlm = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(labels, logits.shape[:-1]))
        valid = jnp.broadcast_to(text_valid[:, None], mlm.shape)
        mlm = jnp.where(valid, mlm, 0.0).sum() / jnp.maximum(valid.sum(), 1)

        predicted = head(hidden[:, :pairs, 1 + num_slots :], method="mpm_logits")
        target = jnp.take_along_axis(features[:, :pairs], patch_positions[:, :pairs, :, None], axis=2)
        mpm = patch_divergence(jax.lax.stop_gradient(target), predicted).mean()

        matches = jnp.broadcast_to(jnp.array([1, 0]), hidden.shape[:2])
        logits = head(hidden[:, :, 0].reshape(-1, hidden.shape[-1]), method="tia_logits").reshape(*matches.shape, 2)
        tia = optax.softmax_cross_entropy_with_integer_labels(logits, matches).mean()
        accuracy = (logits.argmax(axis=-1) == matches).mean()
        return jnp.stack([mlm, mpm, tia]), {"tia_accuracy": accuracy}

    def shared(self, gradients: Any) -> Any:
        """The part of a gradient that every task reaches: embeddings, encoder, and a patch network that trains."""
        parts = {name: gradients["fashionbert"][name] for name in SHARED}
        return parts | {"patches": gradients.get("patches", {})}

    def _draw_masks(self, key: jax.Array, batch: Batch):
        """Masked ids [B, T], text positions and validity [B, M], patch positions [B, 2, K].

        Keyed by each product's own index, so that order and device count do not matter.
        """

        def draw(index, ids, word_ids):
            key_text, *keys_patches = jax.random.split(jax.random.fold_in(key, index), 3)
            text = masking.mask_text(
                key_text, ids, word_ids, self.config.mlm_rate, self.mask_id, self.model.vocabulary_size
            )
            choose = partial(masking.choose_patches, num_patches=self.patches.num_patches, rate=self.config.mpm_rate)
            return *text, jnp.stack([choose(k) for k in keys_patches])

        return jax.vmap(draw)(batch.index, batch.ids, batch.word_ids)

    def _features(self, params: Any, batch: Batch) -> jax.Array:
        """Features of image and partner, [B, 2, P, C] float32: stacked on axis 1, so that a shard of B stays one."""
        images = jnp.stack([batch.image, batch.partner], axis=1)
        features = self.patches.apply(params, images.reshape(-1, *images.shape[2:]))
        return features.astype(jnp.float32).reshape(*images.shape[:2], *features.shape[1:])

    def _encode(self, params, key, ids, text_mask, features, text_positions, patch_positions) -> jax.Array:
        """Hidden states at [CLS], the masked pieces and the masked patches of both pairs, [B, 2, R, D]."""
        b, t = ids.shape
        key_text, key_image, key_encoder = jax.random.split(key, 3)
        apply = partial(self.model.apply, {"params": params}, deterministic=False)

        text = apply(ids, method="embed_text", rngs={"dropout": key_text})
        features = features.reshape(2 * b, *features.shape[2:])
        image = apply(features, method="embed_image", rngs={"dropout": key_image})
        positions = jnp.concatenate(
            [
                jnp.zeros((b, 2, 1), jnp.int32),
                jnp.repeat(text_positions[:, None], 2, axis=1),
                t + patch_positions,
            ],
            axis=2,
        )
        hidden = apply(
            jnp.repeat(text, 2, axis=0),
            jnp.repeat(text_mask, 2, axis=0),
            image,
            positions.reshape(2 * b, -1),
            method="encode",
            rngs={"dropout": key_encoder},
        )
        return hidden.reshape(b, 2, *hidden.shape[1:])


def patch_divergence(target: jax.Array, prediction: jax.Array) -> jax.Array:
    """``KL(softmax(target) || softmax(prediction))`` over the last axis: ``[..., C] -> [...]``.

    The direction of the authors' release; Eq. 2 prints the arguments the other way round.
    """
    log_target, log_prediction = jax.nn.log_softmax(target), jax.nn.log_softmax(prediction)
    return (jnp.exp(log_target) * (log_target - log_prediction)).sum(axis=-1)
