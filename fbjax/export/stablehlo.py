"""The format ``stablehlo``: one `jax.export` artifact a function, of any batch and text length, for CPU, CUDA and TPU.

The weights lie beside them once. Products are in full float32 on every device, where a GPU or TPU left to itself would
round factors to fewer bits. `fbjax.exported.runtime` reads what is written here.
"""

import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.export
import numpy as np

from fbjax.export.functions import Function, abstract_inputs
from fbjax.export.source_model import SourceModel
from fbjax.exported.runtime import PROGRAMS, SUFFIX, WEIGHTS, Exported

PLATFORMS = ("cpu", "cuda", "tpu")


def write(subject: SourceModel, folder: Path) -> None:
    params = flax.traverse_util.flatten_dict(subject.params, sep="/")
    np.savez(folder / WEIGHTS, **params)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()}
    described = {}
    for name, function in subject.functions.items():
        program = export(function, shapes, subject.run.config.model.text_tokens)
        artifact = bytes(program.serialize())
        (folder / f"{name}{SUFFIX}").write_bytes(artifact)
        described[name] = describe(program, artifact)
    (folder / PROGRAMS).write_text(json.dumps(described, indent=1) + "\n")


def describe(program: jax.export.Exported, artifact: bytes) -> dict:
    """What runs the module inside an artifact where flatbuffers, by which JAX reads the whole of it, is not there."""
    module = program.mlir_module_serialized
    return {
        "module": [artifact.index(module), len(module)],
        "kept": program.module_kept_var_idx,
        "calling_convention": program.calling_convention_version,
        "platforms": program.platforms,
        "outputs": [[size if isinstance(size, int) else str(size) for size in out.shape] for out in program.out_avals],
    }


def export(function: Function, shapes: dict[str, jax.ShapeDtypeStruct], longest: int) -> jax.export.Exported:
    """`function` of flat parameters of `shapes` and its inputs."""

    def call(params, *arrays):
        return function.call(flax.traverse_util.unflatten_dict(params, sep="/"), *arrays)

    with jax.default_matmul_precision("highest"):
        return jax.export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *abstract_inputs(function, longest))


load = Exported
