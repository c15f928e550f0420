"""What a task is that makes vectors of texts, images and products, for any contrast over them.

A run has one such task: it owns the projection, the linear branch or the dual encoder, and the temperature. Its
subclasses say which readings the loss contrasts. All readings of the encoder share their parameters, as the towers of
the paper's application do.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.encoder import dense
from fbjax.model.linear import LinearBranch, unit
from fbjax.model.towers.dual_encoder import DualEncoder
from fbjax.tasks.base import Task
from fbjax.tasks.towers import contrast

START_SCALE = {"softmax": 1 / 0.07, "sigmoid": 10.0, "hinge": 1 / 0.07, "hardest": 1 / 0.07}  # of cosines
MAX_SCALE = 100.0  # Radford et al. 2021
START_SHARE = 0.5  # of the encoder's logits beside the linear branch's
START_BIAS = -10.0  # Zhai et al. 2023: most pairs are mismatches
LOSSES: dict[str, Callable] = {
    "softmax": contrast.info_nce,
    "sigmoid": contrast.sigmoid_loss,
    "hinge": contrast.hinge_loss,
}


@dataclasses.dataclass(frozen=True)
class Embedding(Task):
    """Vectors of length 1 by the encoder, a linear branch, both of these, or a dual encoder, and what turns their
    cosines into logits."""

    embedding_dim: int = setting(
        256, "E, of the vectors of texts, images and products (64 to 512); with both branches 2 E", "[1, inf)"
    )
    branches: Literal["encoder", "linear", "both", "dual"] = setting(
        "encoder",
        "what makes a vector: the encoder's mean (encoder, the paper's application); a bag of the text's words and "
        "word pairs, and patch features side by side, each mapped linearly (linear); the two side by side, so "
        "that their logits add up (both); or a text tower and the patch network's features of the whole image (dual: "
        "CLIP, SigLIP)",
    )
    text_tower: Literal["clip", "clip_gelu", "siglip", "siglip_gelu"] = setting(
        "clip",
        "under branches dual: what reads a text, of the model's sizes; clip has QuickGELU and siglip GELU by tanh, the "
        "others GELU by the error function",
    )
    ngrams_of: Literal["words", "pieces"] = setting(
        "words", "what a bag counts singly and in pairs; pieces: where words are joined, as in Japanese"
    )
    encoder_tokens: int = setting(
        0, "tokens of a text that the encoder reads, where a bag reads model.text_tokens of it; 0: as many", "[0, inf)"
    )
    feature_dropout: float = setting(
        0.1,
        "dropout of the linear branch's image features; more of it makes trained images attract fewer queries",
        "[0, 1)",
    )
    image_weight: float = setting(
        0.5,
        "of an image beside the text in a product's vector of the linear branch or of a dual encoder; both have "
        "length 1",
        "[0, inf)",
    )

    form: Literal["softmax", "sigmoid", "hinge", "hardest"] = setting(
        "softmax",
        "softmax: InfoNCE with a learned temperature (CLIP); sigmoid: a yes or no for each pair, with a learned "
        "temperature and bias (SigLIP); hinge: the sum over negatives within a margin of .2 (VSE); hardest: the "
        "hardest negative alone, in each direction (VSE++)",
    )

    hardest_from: int = setting(
        0,
        "under form hardest: the step from which the hardest negative counts alone; before it all do, without which "
        "the vectors may become equal from the start",
        "[0, inf)",
    )

    owns = ("projection", "log_scale", "log_share", "logit_bias", "linear", "dual")
    whole_batch = True
    embeds = True

    @property
    def vector_size(self) -> int:
        """Of the vectors of texts, images and products."""
        return self.embedding_dim * (1 + (self.branches == "both"))

    @property
    def reads_encoder(self):
        return self.branches in ("encoder", "both")

    @property
    def reads_bags(self):
        return self.branches in ("linear", "both")

    @property
    def reads_apart(self):
        return {"encoder": "", "both": "linear"}.get(self.branches, self.branches)

    def check(self, config):
        found = self._check_alone(config)
        if self.branches == "dual" and not config.patches.whole_image:
            found.append(
                f"tasks.{self.name}.branches 'dual' reads the patch network's features of the whole image: set "
                "patches.whole_image to true"
            )
        if self.branches == "dual" and config.model.dtype != "float32":
            found.append(
                f"tasks.{self.name}.branches 'dual' computes in float32, not in model.dtype {config.model.dtype!r} "
                "(leave it at 'float32')"
            )
        if self.hardest_from and self.form != "hardest":
            found.append(
                f"tasks.{self.name}.hardest_from {self.hardest_from} is for form 'hardest', not {self.form!r} "
                "(leave it at 0)"
            )
        return found

    def _check_alone(self, config) -> list[str]:
        others = [name for name, task in config.tasks.items() if task.embeds and name != self.name]
        if not others or self.name > min(others):  # said once
            return []
        return [f"tasks {self.name} and {', '.join(others)} each make the run's vectors: take one of them"]

    def heads(self, model, spec):
        def log_scale(module: nn.Module) -> Any:
            return _scalar(module, "log_scale", math.log(START_SCALE[self.form]))

        found: dict[str, Any] = {"log_scale": log_scale}
        if self.reads_encoder:
            found["projection"] = dense(model, self.embedding_dim, ("embed", None), use_bias=False, name="projection")
        if self.reads_bags:
            num_cells = spec.num_patches // spec.num_images * spec.feature_size
            sizes = spec.num_ngrams, num_cells, self.embedding_dim
            found["linear"] = LinearBranch(*sizes, self.feature_dropout, self.image_weight)
        if self.branches == "dual":
            sizes = (
                spec.vocabulary_size,
                spec.text_tokens,
                model.width,
                model.num_layers,
                model.num_heads,
                model.mlp_dim,
            )
            found["dual"] = DualEncoder(self.text_tower, sizes, self.embedding_dim, self.image_weight)
        if self.branches == "both":
            found["log_share"] = lambda module: _scalar(module, "log_share", math.log(START_SHARE))
        if self.form == "sigmoid":
            found["logit_bias"] = lambda module: _scalar(module, "logit_bias", START_BIAS)
        return found

    def initialise(self, model, text, image, means):
        if self.reads_encoder:
            model.projection(text[:, 0])
        features = jnp.zeros((1, model.spec.num_patches // model.spec.num_images, model.spec.feature_size))
        if self.reads_bags:
            model.linear.image(features)
        if self.branches == "dual":
            model.dual.image(features)
            model.dual.text(jnp.zeros((1, model.spec.text_tokens), jnp.int32))

    def vector(self, model, reading) -> jax.Array:
        """A `Reading` as vectors of length 1, [..., `vector_size`] float32.

        Of both branches each has length 1 before they stand side by side, the encoder's then the root of its share: a
        cosine is ``(linear cosine + share * encoder cosine) / (1 + share)``.
        """
        if not self.reads_encoder:
            return unit(reading.apart)
        encoder = unit(model.projection(reading.mean).astype(jnp.float32))
        if self.branches == "encoder":
            return encoder
        share = jnp.exp(model.log_share)
        both = [unit(reading.apart), jnp.sqrt(share) * encoder]
        both = jax.lax.concatenate(both, encoder.ndim - 1)  # jnp's: see `FashionBert._image_and_mask`
        return both / jnp.sqrt(1 + share)

    def logit_scale(self, model) -> jax.Array:
        """What cosines are multiplied by before the softmax over a batch."""
        return self._scale(model) * (1 + jnp.exp(model.log_share) if self.branches == "both" else 1.0)

    def _scale(self, model) -> jax.Array:
        """1 over the learned temperature; with both branches the linear one's."""
        above = jax.nn.relu(model.log_scale - math.log(MAX_SCALE))
        return jnp.exp(model.log_scale - jax.lax.stop_gradient(above))  # at the limit it can still learn its way down

    def pair_logits(self, model, cosines: jax.Array) -> jax.Array:
        """What the form's loss takes [B, B]: cosines, scaled but for a hinge, with a learned bias for the sigmoid."""
        if self.form in ("hinge", "hardest"):
            return cosines
        scaled = self.logit_scale(model) * cosines
        return scaled + model.logit_bias if self.form == "sigmoid" else scaled

    def contrasted(self, logits: jax.Array, negatives: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(loss, hits) [B] each of the `pair_logits` and negatives [B, B], by the form, at a `step` [B] of training."""
        if self.form == "hardest":
            losses = contrast.hardest_from(logits, negatives, step, self.hardest_from)
        else:
            losses = LOSSES[self.form](logits, negatives)
        return losses, contrast.hits(logits, negatives)


def _scalar(module: nn.Module, name: str, start: float) -> Any:
    return module.param(name, nn.with_logical_partitioning(nn.initializers.constant(start), ()), ())
