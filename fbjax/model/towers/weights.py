"""The parameters of a dual encoder, and the temperature, from the arrays of a CLIP's or SigLIP's file."""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.towers.dual_encoder import DualEncoder
from fbjax.model.weights import name_maps
from fbjax.model.weights.clip_names import CLIP_TEXTS, SIGLIP_TEXTS
from fbjax.model.weights.name_maps import Named

WORD = "text_tower/word"
SOURCES = {"clip": CLIP_TEXTS, "siglip": SIGLIP_TEXTS}
SCALARS = {"clip": ("log_scale",), "siglip": ("log_scale", "logit_bias")}


@dataclasses.dataclass(frozen=True)
class TextSizes:
    """What the arrays tell of a text tower."""

    num_tokens: int  # T, a [CLS] included, which SigLIP's has no position for
    width: int
    num_layers: int
    mlp_dim: int
    size: int  # E


def text_sizes(arrays: dict[str, np.ndarray], kind: str) -> TextSizes:
    """Of a file's `arrays`; `kind`: "clip" or "siglip". Raises ValueError where they hold no text tower of the kind."""
    try:
        named = Named.find(arrays, SOURCES[kind], WORD)
        (positions, width), (mlp_dim,) = (
            named.shape("text_tower/positions"),
            named.shape("text_tower/block_0/mlp_in/bias"),
        )
        _, size = named.shape("text_tower/projection/kernel")
    except (KeyError, ValueError) as error:
        raise ValueError(f"the weights hold no text tower of {kind}: {error} is not there") from None
    return TextSizes(positions + (kind == "siglip"), width, named.num_blocks("text_tower/"), mlp_dim, size)


def take_dual_encoder(
    arrays: dict[str, np.ndarray],
    form: str,
    sizes: TextSizes,
    num_heads: int,
    image_width: int,
    rows: int,
    own: int,
    pad: int,
) -> dict[str, np.ndarray]:
    """{name: array} of a `DualEncoder` of this `form`, of "log_scale", and of "logit_bias" where the form has it.

    `rows`: of the vocabulary, of which the first is [PAD] and the next `own` are the first of the file's table; those
    after them are 0. `pad`: the file's row that pads texts. Raises ValueError with every array that is missing, that is
    not known, or of another shape.
    """
    kind = form.removesuffix("_gelu")
    named = Named.find(arrays, SOURCES[kind], WORD)
    (there, _) = named.shape(WORD)
    if there < own:
        raise ValueError(
            f"the tokenizer has {own:,} pieces, the weights {there:,}: copy the model's own tokenizer there"
        )
    dims = there, sizes.num_tokens, sizes.width, sizes.num_layers, num_heads, sizes.mlp_dim
    shapes = parameter_shapes(DualEncoder(form, dims, sizes.size, 1.0), image_width) | dict.fromkeys(SCALARS[kind], ())
    taken, problems = name_maps.take(arrays, SOURCES[kind], shapes)
    if problems:
        raise ValueError(f"these are not the weights of a {kind}:\n  {name_maps.listed(problems)}")
    table = taken[WORD]
    words = np.zeros((rows, sizes.width), np.float32)
    words[PAD_ID] = table[pad]
    words[1 : 1 + own] = table[:own]
    return taken | {WORD: words}


def parameter_shapes(module: DualEncoder, image_width: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a dual encoder whose image tower is `image_width` wide."""

    def both(module: DualEncoder, ids: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        return module.text(ids), module.image(features)

    ids, features = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, 1, image_width), jnp.float32)
    params = jax.eval_shape(lambda *given: module.init(jax.random.key(0), *given, method=both), ids, features)
    flat = flax.traverse_util.flatten_dict(nn.unbox(params["params"]), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}
