"""The pretraining objective {mlm, mpm, tia} on a Batch (paper, sections 3.3 and 3.4), or any of these and the towers'
contrast {itc}: K losses, nothing of weights.

An objective is a set of named task losses: it has `tasks`, their names in order; ``prepare(batch, key) -> examples``, a
tree of [B, ...] with everything drawn or counted over the global batch; ``branches(params, frozen, examples, key)``,
the losses of some of those examples, for `task_weights`; and ``shared(gradients)``, the part that every task reaches.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from fbjax.config.schema import TaskConfig
from fbjax.data.batches.batch import Batch
from fbjax.model.fashionbert import FashionBert
from fbjax.model.patch_features import PatchNetwork
from fbjax.tasks import masking
from fbjax.tasks.branches import Branches, Head
from fbjax.tasks.itc import info_nce, valid_negatives
from fbjax.tasks.mpm import patch_divergence

SHARED = ("text_embeddings", "image_embeddings", "encoder")  # the pooler serves tia alone, as the heads do their task


@flax.struct.dataclass
class Examples:
    """B products with their masks drawn, and what each counts for in the means over the global batch."""

    batch: Batch
    ids: jax.Array  # [B, T], masked
    text_positions: jax.Array  # [B, M]
    piece_weight: jax.Array  # [B, M]: 1 over the number of masked pieces in the global batch; 0 where a slot is empty
    patch_positions: jax.Array  # [B, 2, K]
    weight: jax.Array  # [B]: 1 over the number of products in the global batch


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """MLM, MPM and TIA over the true and the negative pair of each product, ITC over all pairs of the batch."""

    model: FashionBert
    patches: PatchNetwork
    config: TaskConfig
    mask_id: int

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.config.names

    def losses(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        """Losses [K], each a mean over the batch, and metrics."""
        key_masks, key_dropout = jax.random.split(key)
        return self.branches(frozen, self.prepare(batch, key_masks), key_dropout).losses(params)

    def prepare(self, batch: Batch, key: jax.Array) -> Examples:
        """Masks keyed by each product's own index, so that order and device count do not matter.

        Both pairs of a product are masked alike: were only true ones masked, [MASK] would tell them apart. Nothing is
        masked for a task that is left out, and the token of the whole image never is: it is no patch.
        """
        whole = int(self.patches.whole_image)

        def draw(index, ids, word_ids):
            key_text, *keys_patches = jax.random.split(jax.random.fold_in(key, index), 3)
            if "mlm" in self.tasks:
                text = masking.mask_text(
                    key_text, ids, word_ids, self.config.mlm_rate, self.mask_id, self.model.vocabulary_size
                )
            else:
                text = ids, jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
            if "mpm" not in self.tasks:
                return *text, jnp.zeros((2, 0), jnp.int32)
            num_patches = self.patches.num_patches - whole
            choose = partial(masking.choose_patches, num_patches=num_patches, rate=self.config.mpm_rate)
            return *text, whole + jnp.stack([choose(k) for k in keys_patches])

        ids, positions, valid, patches = jax.vmap(draw)(batch.index, batch.ids, batch.word_ids)
        return Examples(
            batch=batch,
            ids=ids,
            text_positions=positions,
            piece_weight=valid / jnp.maximum(valid.sum(), 1),
            patch_positions=patches,
            weight=jnp.full(len(ids), 1.0 / len(ids)),
        )

    def branches(self, frozen: Any, examples: Examples, key: jax.Array) -> Branches:
        """The losses of MLM, MPM and TIA over hidden states [B, n, 1 + M + K, D] at [CLS], masked pieces and patches.

        One trunk computes both pairs (n = 2). Where MLM and MPM look at true pairs only, each kind has its own: those
        two tasks then cost no pull-back through negative pairs, of which [CLS] alone leaves the last layer. Without
        TIA nobody reads negative pairs. ITC has a trunk of its own, the two towers.
        """
        num_slots = examples.text_positions.shape[1]
        kinds = (slice(0, 2),) if self.config.mask_negatives else (slice(0, 1), slice(1, 2))
        kinds = kinds if "tia" in self.tasks else (slice(0, 1),)
        kinds = kinds if {"mlm", "mpm", "tia"} & set(self.tasks) else ()
        *keys, key_towers = jax.random.split(key, 1 + len(kinds))

        def trunk(params, kind, key):
            variables = {**frozen, **params}
            features = self._features(variables["patches"], examples.batch, kind)
            hidden, means = self._encode(
                variables["fashionbert"], key, examples, features, kind, cls_only=kind != kinds[0]
            )
            return hidden, means, jax.lax.stop_gradient(features)

        def head(params, *arguments, method):
            return self.model.apply({"params": params["fashionbert"]}, *arguments, method=method)

        def mlm(params, output):
            hidden = output[0][:, :, 1 : 1 + num_slots]
            labels = jnp.take_along_axis(examples.batch.ids, examples.text_positions, axis=1)[:, None]
            logits = head(params, hidden, method="mlm_logits")
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.broadcast_to(labels, logits.shape[:-1])
            )
            return (examples.piece_weight * losses.mean(axis=1)).sum(), {}

        def mpm(params, output):
            hidden, features = output[0], jax.lax.stop_gradient(output[2])
            positions = examples.patch_positions[:, kinds[0], :, None]
            target = jnp.take_along_axis(features, positions, axis=2)
            losses = patch_divergence(target, head(params, hidden[:, :, 1 + num_slots :], method="mpm_logits"))
            return examples.weight @ losses.mean(axis=(1, 2)), {}

        def tia(params, *outputs):
            cls = jnp.concatenate([hidden[:, :, 0] for hidden, _, _ in outputs], axis=1)  # [B, 2, D]
            means = [means for _, means, _ in outputs if means is not None]
            means = jnp.concatenate(means, axis=1).reshape(-1, 2, cls.shape[-1]) if means else None
            matches = jnp.broadcast_to(jnp.array([1, 0]), cls.shape[:2])
            logits = head(params, cls.reshape(-1, cls.shape[-1]), means, method="tia_logits").reshape(*matches.shape, 2)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, matches)
            right = (logits.argmax(axis=-1) == matches).mean(axis=1)
            return examples.weight @ losses.mean(axis=1), {"tia_accuracy": examples.weight @ right}

        def towers(params):
            return self._tower_means({**frozen, **params}, examples.batch, key_towers)

        def itc(params, means):
            vectors = (head(params, mean, method="vector") for mean in means)
            apart = valid_negatives(examples.batch.group, examples.batch.ids)
            losses, hits = info_nce(*vectors, head(params, method="scale"), apart)
            return examples.weight @ losses, {"itc_accuracy": examples.weight @ hits}

        trunks = tuple(partial(trunk, kind=kind, key=key) for kind, key in zip(kinds, keys, strict=True))
        pairs = tuple(range(len(kinds)))
        heads = {"mlm": Head(pairs[:1], mlm), "mpm": Head(pairs[:1], mpm), "tia": Head(pairs, tia)}
        if "itc" in self.tasks:
            heads["itc"] = Head((len(trunks),), itc)
            trunks += (towers,)
        return Branches(trunks, tuple(heads[task] for task in self.tasks))

    def _tower_means(self, variables: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Means [B, D] of texts and of images, unmasked, each alone through the encoder."""
        keys = jax.random.split(key, 4)
        apply = partial(self.model.apply, {"params": variables["fashionbert"]}, deterministic=False)
        features = self.patches.apply(variables["patches"], batch.image).astype(jnp.float32)
        text = apply(batch.ids, method="embed_text", rngs={"dropout": keys[0]})
        image = apply(features, method="embed_image", rngs={"dropout": keys[1]})
        return (
            apply(text, batch.text_mask, None, method="tower", rngs={"dropout": keys[2]}),
            apply(None, None, image, method="tower", rngs={"dropout": keys[3]}),
        )

    def shared(self, gradients: Any) -> Any:
        """The part of a gradient that every task reaches: embeddings, encoder, and a patch network that trains."""
        parts = {name: gradients["fashionbert"][name] for name in SHARED}
        return parts | {"patches": gradients.get("patches", {})}

    def _features(self, params: Any, batch: Batch, kind: slice) -> jax.Array:
        """Features of image and negative, [B, n, P, C] float32: stacked on axis 1, so that a shard of B stays one."""
        images = jnp.stack([batch.image, batch.negative][kind], axis=1)
        features = self.patches.apply(params, images.reshape(-1, *images.shape[2:]))
        return features.astype(jnp.float32).reshape(*images.shape[:2], *features.shape[1:])

    def _encode(self, params, key, examples: Examples, features: jax.Array, kind: slice, cls_only: bool):
        """Hidden states at [CLS], and at the masked pieces and patches unless `cls_only`, of n pairs, [B, n, .., D];
        and the means that TIA reads besides, [B, n, 2, D] or None."""
        b, n = features.shape[:2]
        patch_positions = examples.patch_positions[:, kind]
        hide = jax.nn.one_hot(patch_positions, features.shape[2], dtype=bool).any(axis=2)  # [B, n, P]
        features = jnp.where(hide[..., None], 0.0, features).reshape(b * n, *features.shape[2:])
        key_text, key_image, key_encoder = jax.random.split(key, 3)
        apply = partial(self.model.apply, {"params": params}, deterministic=False)

        text = apply(examples.ids, method="embed_text", rngs={"dropout": key_text})
        image = apply(features, method="embed_image", rngs={"dropout": key_image})
        masked = [jnp.repeat(examples.text_positions[:, None], n, axis=1), examples.ids.shape[1] + patch_positions]
        positions = jnp.concatenate([jnp.zeros((b, n, 1), jnp.int32), *([] if cls_only else masked)], axis=2)
        hidden, means = apply(
            jnp.repeat(text, n, axis=0),
            jnp.repeat(examples.batch.text_mask, n, axis=0),
            image,
            positions.reshape(b * n, -1),
            method="encode_pair",
            rngs={"dropout": key_encoder},
        )
        return hidden.reshape(b, n, *hidden.shape[1:]), None if means is None else means.reshape(b, n, *means.shape[1:])
