"""What an export computes: a trained run as pure functions of its parameters, the same ones for every format.

Owns their names, inputs and outputs; knows nothing of formats. Text comes as framed piece ids, whose mask is
``ids != 0``; an image as pixels, or as patch features that the function ``features`` or a cache has made of them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.export
import jax.numpy as jnp

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.fashionbert import build_model, match_score
from fbjax.runs.run import Run

BATCH, LENGTH = "batch", "length"  # the axes of any size; the length of a text is at most `text_tokens`


@dataclasses.dataclass(frozen=True)
class Input:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Function:
    """``call(params, *arrays) -> tuple of arrays`` float32, one for each of `outputs`; may be jitted and exported.

    `params` hold "fashionbert" and "patches", as the scorer takes them.
    """

    name: str
    call: Callable[..., tuple[jax.Array, ...]]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def functions(run: Run) -> dict[str, Function]:
    """What `run` has been trained for, by name: `match` with the task tia, `embed_text` and its like with itc.

    ``match``: "score" [batch], the difference of "logits" [batch, 2], > 0 where a match is likelier. ``embed_..``:
    "vectors" [batch, E] of length 1. ``.._features`` take features in place of images. Everything is computed in
    float32, whatever the run was trained in.
    """
    config, parts = run.config, _Parts(run)
    found = []
    if not config.patches.ready_made:
        found.append(
            Function("features", lambda p, images: (parts.extract(p, images),), (parts.images,), ("features",))
        )
    if "tia" in config.tasks.names:
        found += parts.from_images_and_features("match", parts.match, (parts.ids,), ("score", "logits"))
    if "itc" in config.tasks.names and config.model.embedding_dim:
        found.append(Function("embed_text", lambda p, ids: parts.embed(p, ids, None), (parts.ids,), ("vectors",)))
        image_alone = lambda p, features: parts.embed(p, None, features)  # noqa: E731
        found += parts.from_images_and_features("embed_image", image_alone, (), ("vectors",))
        found += parts.from_images_and_features("embed_product", parts.embed, (parts.ids,), ("vectors",))
    return {function.name: function for function in found}


def heads(run: Run) -> dict[str, Function]:
    """What pretraining predicts at every position, of formats that carry it: ``mlm`` [batch, length, V] and ``mpm``
    [batch, P, C], from ids and features."""
    parts = _Parts(run)
    inputs = (parts.ids, parts.features)
    both = {"mlm": parts.mlm, "mpm": parts.mpm}
    return {name: Function(name, both[name], inputs, ("logits",)) for name in both if name in run.config.tasks.names}


def abstract_inputs(function: Function, longest: int) -> list[jax.ShapeDtypeStruct]:
    """The inputs of `function` with symbols for batch and length, this at most `longest`."""
    axes = {axis for given in function.inputs for axis in given.shape if isinstance(axis, str)}
    scope = jax.export.SymbolicScope([f"{LENGTH} <= {longest}"] if LENGTH in axes else [])
    symbols = {axis: jax.export.symbolic_shape(axis, scope=scope)[0] for axis in axes}
    return [
        jax.ShapeDtypeStruct([symbols.get(axis, axis) for axis in given.shape], given.dtype)
        for given in function.inputs
    ]


class _Parts:
    """The run's model and patch network, in float32, as functions of parameters and arrays."""

    def __init__(self, run: Run):
        patches, size = run.config.patches, run.config.patches.image_size
        plain = dataclasses.replace(run.config.model, dtype="float32", attention="xla", remat="none")
        self._model, self._patches = build_model(plain, run.vocabulary.size, run.patches), run.patches
        self._at_once = patches.geometry == "feature_map" or bool(patches.ready_made)
        self.ids = Input("ids", "int32", (BATCH, LENGTH))
        self.images = Input("images", "uint8", (BATCH, size, size, 3))
        self.features = Input("features", "float32", (BATCH, run.patches.num_patches, run.patches.feature_size))
        self._has_images = not patches.ready_made

    def from_images_and_features(self, name, call, inputs, outputs) -> list[Function]:
        """`call`, whose last array are features, as a function of these, and as one of images."""

        def of_images(params, *arrays):
            return call(params, *arrays[:-1], self.extract(params, arrays[-1]))

        both = [Function(f"{name}_features", call, (*inputs, self.features), outputs)]
        if self._has_images:
            both.insert(0, Function(name, of_images, (*inputs, self.images), outputs))
        return both

    def extract(self, params, images: jax.Array) -> jax.Array:
        """``images [B, S, S, 3] -> features [B, P, C]``.

        Enlarged patches of one image at a time, as many fit into memory however large the batch is.
        """
        apply = partial(self._patches.apply, params.get("patches", {}))
        return apply(images) if self._at_once else jax.lax.map(lambda image: apply(image[None])[0], images)

    def match(self, params, ids: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = self._applied(params)
        cls = jnp.zeros_like(ids[:, :1])
        hidden, means = self._encode(apply, ids, features, cls)
        logits = apply(hidden[:, 0], means, method="tia_logits")
        return match_score(logits), logits

    def embed(self, params, ids: jax.Array | None, features: jax.Array | None) -> tuple[jax.Array]:
        apply = self._applied(params)
        text = None if ids is None else apply(ids, method="embed_text")
        image = None if features is None else apply(features, method="embed_image")
        mean = apply(text, None if ids is None else ids != PAD_ID, image, method="tower")
        return (apply(mean, method="vector"),)

    def mlm(self, params, ids: jax.Array, features: jax.Array) -> tuple[jax.Array]:
        apply = self._applied(params)
        hidden, _ = self._encode(apply, ids, features, None)
        return (apply(hidden[:, : ids.shape[1]], method="mlm_logits"),)

    def mpm(self, params, ids: jax.Array, features: jax.Array) -> tuple[jax.Array]:
        apply = self._applied(params)
        hidden, _ = self._encode(apply, ids, features, None)
        return (apply(hidden[:, ids.shape[1] :], method="mpm_logits"),)

    def _applied(self, params):
        return partial(self._model.apply, {"params": params["fashionbert"]})

    def _encode(self, apply, ids, features, positions):
        text, image = apply(ids, method="embed_text"), apply(features, method="embed_image")
        return apply(text, ids != PAD_ID, image, positions, method="encode_pair")
