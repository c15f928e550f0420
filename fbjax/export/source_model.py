"""The model to export: a run, the parameters of one checkpoint on the host, and its functions."""

import dataclasses
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from fbjax.config.schema import MeshConfig
from fbjax.export.functions import Function, functions
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.loaded import LoadedRun


@dataclasses.dataclass(frozen=True)
class SourceModel(LoadedRun):
    """`params` are float32 host arrays, "fashionbert" and "patches", as `functions` take them."""

    functions: dict[str, Function]

    @classmethod
    def open(cls, workdir: str | Path, step: int | None, with_heads: bool) -> "SourceModel":
        """The best checkpoint of a run, or that of `step`, on one device; `with_heads`: of pretraining too."""
        loaded = LoadedRun.load(workdir, step, one_device())
        on_host = jax.tree.map(np.asarray, loaded.variables)
        return cls(**vars(loaded) | {"params": on_host, "functions": functions(loaded.run, with_heads)})

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The live model's outputs for `arrays`, by name."""
        if "images" in arrays and name != "features":  # the patch network compiles once, not once a function
            features = self.call("features", images=arrays.pop("images"))
            return self.call(f"{name}_features", **arrays, **features)
        function = self.functions[name]
        with jax.default_matmul_precision("highest"):  # a GPU or TPU would round factors to fewer bits
            found = self._jitted[name](self._on_device, *(arrays[given.name] for given in function.inputs))
        return dict(zip(function.outputs, map(np.asarray, found), strict=True))

    @cached_property
    def _jitted(self) -> dict:
        return {name: jax.jit(function.call) for name, function in self.functions.items()}

    @cached_property
    def _on_device(self) -> dict:
        return jax.device_put(self.params)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
