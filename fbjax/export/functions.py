"""The functions of an export: a trained run as pure functions of its parameters, the same for every format.

Text comes as framed piece ids, with the mask ``ids != 0``. An image comes as pixels, or as patch features from the
function ``features`` or from a cache.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.export

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import embed_vectors
from fbjax.inference.pair_scorer import match_logits
from fbjax.model.fashionbert import match_score
from fbjax.runs.run import Run

BATCH, LENGTH = "batch", "length"  # axes of any size; a text has at most `text_tokens`


@dataclasses.dataclass(frozen=True)
class Input:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Function:
    """``call(params, *arrays) -> tuple of arrays`` float32, one for each of `outputs`; pure, to be jitted and exported.

    `params` hold "fashionbert" and "patches".
    """

    name: str
    call: Callable[..., tuple[jax.Array, ...]]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def functions(run: Run, with_heads: bool = False) -> dict[str, Function]:
    """The functions that `run` is trained for, by name, always in float32.

    ``match``: "score" [batch], the difference of "logits" [batch, 2], > 0 where a match is likelier. ``embed_..``:
    "vectors" [batch, E] of length 1. ``.._features`` take features in place of images. `with_heads` adds the
    predictions of pretraining, ``mlm`` [batch, length, V] and ``mpm`` [batch, P, C], from ids and features.
    """
    config, patches, size = run.config, run.patches, run.config.patches.image_size
    model = run.model.clone(config=dataclasses.replace(config.model, dtype="float32", attention="xla", remat="none"))
    ids = Input("ids", "int32", (BATCH, LENGTH))
    images = Input("images", "uint8", (BATCH, size, size, 3))
    features = Input("features", "float32", (BATCH, patches.num_patches, patches.feature_size))
    found = []

    def add(name: str, call: Callable, inputs: tuple[Input, ...], outputs: tuple[str, ...]) -> None:
        """Adds `call`, whose last array is features, as a function of images too."""
        if not config.data.feature_size:
            from_images = lambda params, *arrays: call(params, *arrays[:-1], *extract(params, arrays[-1]))  # noqa: E731
            found.append(Function(name, from_images, (*inputs, images), outputs))
        found.append(Function(f"{name}_features", call, (*inputs, features), outputs))

    def extract(params, images):
        apply = partial(patches.apply, params.get("patches", {}))
        if config.patches.geometry == "feature_map":
            return (apply(images)[:, : patches.num_patches],) if patches.num_variants else (apply(images),)
        return (
            jax.lax.map(lambda image: apply(image[None])[0], images),
        )  # enlarged patches of a batch need much memory

    def match(params, ids, features):
        image = model.apply({"params": params["fashionbert"]}, features, method="embed_image")
        logits = match_logits(model, params["fashionbert"], ids, image)
        return match_score(logits), logits

    def embed(params, ids, features):
        return (embed_vectors(model, params, ids, features),)

    def predict(name, at, params, ids, features):
        apply, t = partial(model.apply, {"params": params["fashionbert"]}), ids.shape[1]
        text, image = apply(ids, method="embed_text"), apply(features, method="embed_image")
        hidden, _ = apply(text, ids != PAD_ID, image, None, method="encode_pair")
        return (apply(name, "logits", hidden[:, :t] if at == "text" else hidden[:, t:], method="run_head"),)

    if not config.data.feature_size:
        found.append(Function("features", extract, (images,), ("features",)))
    if run.scores_pairs:
        add("match", match, (ids,), ("score", "logits"))
    if run.has_embedder:
        found.append(Function("embed_text", lambda params, ids: embed(params, ids, None), (ids,), ("vectors",)))
        add("embed_image", lambda params, features: embed(params, None, features), (), ("vectors",))
        add("embed_product", embed, (ids,), ("vectors",))
    for name, task in config.tasks.items() if with_heads else ():
        if task.predicts_at:
            found.append(Function(name, partial(predict, name, task.predicts_at), (ids, features), ("logits",)))
    return {function.name: function for function in found}


def abstract_inputs(function: Function, longest: int) -> list[jax.ShapeDtypeStruct]:
    """The inputs of `function` with symbols for batch and length; length is at most `longest`."""
    axes = {axis for given in function.inputs for axis in given.shape if isinstance(axis, str)}
    scope = jax.export.SymbolicScope([f"{LENGTH} <= {longest}"] if LENGTH in axes else [])
    symbols = {axis: jax.export.symbolic_shape(axis, scope=scope)[0] for axis in axes}
    return [
        jax.ShapeDtypeStruct([symbols.get(axis, axis) for axis in given.shape], given.dtype)
        for given in function.inputs
    ]
