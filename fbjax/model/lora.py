"""Low-rank adapters of the encoder's linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

A kernel W [D, E] becomes ``W + alpha / r A B`` with factors A [D, r] and B [r, E]. Both are parameters beside the
model's: `merged` multiplies them in before the model is applied, so that no module, scorer or export knows of them.
B starts at 0, with which the model is the one that it adapts.
"""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from fbjax.config.schema import LoraConfig

FACTORS, SCALE = "lora", "scale"  # the section of a tree of parameters, and alpha / r in it


def make_factors(key: jax.Array, params: dict, config: LoraConfig) -> dict:
    """{"encoder": .. {layer: {"a": [D, r], "b": [r, E]}}} for the kernels of `config.layers` in a model's `params`.

    These are boxed with their logical axes, and so are the factors. A is normal with variance 1 / D, B is 0.
    """
    found = {}
    for number, (path, kernel) in enumerate(_kernels(params, config)):
        (height, width), (down, across) = kernel.value.shape, kernel.names
        a = jax.random.normal(jax.random.fold_in(key, number), (height, config.rank)) / math.sqrt(height)
        found[(*path, "a")] = nn.LogicallyPartitioned(a, (down, None))
        found[(*path, "b")] = nn.LogicallyPartitioned(jnp.zeros((config.rank, width)), (None, across))
    return flax.traverse_util.unflatten_dict(found)


def _kernels(params: dict, config: LoraConfig) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path of a layer, its kernel), sorted."""
    for path, kernel in sorted(flax.traverse_util.flatten_dict(params["encoder"]).items()):
        if path[-1] == "kernel" and path[-2] in config.layers:
            yield ("encoder", *path[:-1]), kernel


def flat_params(params: dict) -> dict[tuple[str, ...], Any]:
    """{path: parameter}, with empty sections."""
    return flax.traverse_util.flatten_dict(params, keep_empty_nodes=True)


def merged(base: dict, trained: dict) -> dict:
    """All parameters of a model, {"fashionbert": .., "patches": ..}, from those that do not train and those that do.

    Factors under `FACTORS` of `trained` are multiplied into their kernels, times the `SCALE` that `base` holds.
    """
    if not base:
        return trained
    flat = flat_params(base) | flat_params(trained)
    factors = {path[1:]: flat.pop(path) for path in list(flat) if path[0] == FACTORS}
    for path in {path[:-1] for path in factors if path[-1] != SCALE}:
        a, b, kernel = factors[*path, "a"], factors[*path, "b"], ("fashionbert", *path, "kernel")
        product = jnp.matmul(a, b, precision="highest")  # a GPU or TPU would round factors to fewer bits
        flat[kernel] = flat[kernel] + factors[(SCALE,)] * product
    return flax.traverse_util.unflatten_dict(flat)
