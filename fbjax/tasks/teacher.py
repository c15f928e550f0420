"""A trained model beside the one that trains: what it makes of the same inputs, without a gradient.

Axis legend: N pairs, L positions of text and image, S layers of the student, H attention heads, B products.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.fashionbert import FashionBert, match_score

TRACED = "intermediates"  # where the encoder leaves what it computes, for those who ask


class Trace(NamedTuple):
    """What a model computes of pairs on its way."""

    hidden: jax.Array  # [N, S + 1, L, D]: the embeddings, then the output of each layer
    attention: jax.Array | None  # [N, S, H, L, L]: the weights of each layer's heads; None of flash attention
    logits: jax.Array | None = None  # [N, 2], of a teacher


def trace(intermediates: dict, layers: list[int]) -> Trace:
    """The trace of an encoder's `layers`, from what it left in `TRACED`."""
    encoder = intermediates["encoder"]
    hidden = [encoder["hidden"][at] for at in (0, *(layer + 1 for layer in layers))]
    attention = None
    if "weights" in encoder["layer_0"].get("attention", {}):
        weights = [encoder[f"layer_{layer}"]["attention"]["weights"][0] for layer in layers]
        attention = jnp.stack(weights, axis=1).astype(jnp.float32)
    return Trace(jnp.stack(hidden, axis=1), attention)


def mapped_layers(teacher: int, student: int) -> list[int]:
    """The teacher's layer that each layer of the student learns from: evenly spaced, the last from the last."""
    return [(layer + 1) * teacher // student - 1 for layer in range(student)]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained cross-encoder; its parameters come with the step's constants."""

    model: FashionBert

    @classmethod
    def of(cls, model: FashionBert) -> "Teacher":
        """The teacher that a model is. Its attention is computed in the plain way, which can be read."""
        return cls(model.clone(config=dataclasses.replace(model.config, attention="xla", remat="none")))

    def shapes(self) -> dict:
        """Of its parameters."""
        spec = self.model.spec
        ids, features = jnp.ones((1, spec.text_tokens), jnp.int32), jnp.ones((1, spec.num_patches, spec.feature_size))
        return nn.unbox(jax.eval_shape(self.model.init, jax.random.key(0), ids, ids > 0, features)["params"])

    def trace(self, params: dict, ids: jax.Array, features: jax.Array, num_layers: int) -> Trace:
        """Its trace of texts [N, T] with patch features [N, P, C], in as many layers as the student has."""
        (hidden, means), left = self._encode(params, ids, features, mutable=[TRACED])
        logits = self._logits(params, hidden, means)
        found = trace(left[TRACED], mapped_layers(self.model.config.num_layers, num_layers))
        return jax.lax.stop_gradient(found._replace(logits=logits))

    def match(self, params: dict, ids: jax.Array, features: jax.Array, candidates: jax.Array) -> jax.Array:
        """Match scores [B, k] of texts [B, T] with the images `candidates` [B, k], rows of `features` [B, P, C]."""

        def score(rows: jax.Array) -> jax.Array:
            positions = jnp.zeros_like(ids[:, :1])
            hidden, means = self._encode(params, ids, jnp.take(features, rows, axis=0), positions)
            return match_score(self._logits(params, hidden, means))

        return jax.lax.stop_gradient(jax.lax.map(score, candidates.T).T)

    def _encode(self, params: dict, ids: jax.Array, features: jax.Array, *positions: jax.Array, **options) -> Any:
        apply = partial(self.model.apply, {"params": params})
        text, image = apply(ids, method="embed_text"), apply(features, method="embed_image")
        return apply(text, ids != PAD_ID, image, *positions, method="encode_pair", **options)

    def _logits(self, params: dict, hidden: jax.Array, means: jax.Array | None) -> jax.Array:
        return self.model.apply({"params": params}, hidden[:, 0], means, method="match_logits")
