"""The format ``stablehlo``: one `jax.export` artifact a function, of any batch and text length, for CPU, CUDA and TPU.

One file holds the weights of all functions. Matrix products are in full float32, which GPUs and TPUs do not do by
default. `fbjax.exported.runtime` reads the folder.
"""

from pathlib import Path

import flatbuffers  # noqa: F401  JAX serializes with it without requiring it
import flax.traverse_util
import jax
import jax.export
import numpy as np

from fbjax.export.functions import Function, abstract_inputs
from fbjax.export.source_model import SourceModel
from fbjax.exported.runtime import SUFFIX, WEIGHTS, Exported

PLATFORMS = ("cpu", "cuda", "tpu")


def write(source_model: SourceModel, folder: Path) -> None:
    params = flax.traverse_util.flatten_dict(source_model.params, sep="/")
    np.savez(folder / WEIGHTS, **params)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()}
    for name, function in source_model.functions.items():
        program = export(function, shapes, source_model.run.config.model.text_tokens)
        (folder / f"{name}{SUFFIX}").write_bytes(program.serialize())


def export(function: Function, shapes: dict[str, jax.ShapeDtypeStruct], longest: int) -> jax.export.Exported:
    """`function` of flat parameters of `shapes` and its inputs."""

    def call(params, *arrays):
        return function.call(flax.traverse_util.unflatten_dict(params, sep="/"), *arrays)

    with jax.default_matmul_precision("highest"):
        return jax.export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *abstract_inputs(function, longest))


load = Exported
