"""What is exported: a run, the parameters of one of its checkpoints on the host, and the functions they serve."""

import dataclasses
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from fbjax.config.schema import MeshConfig
from fbjax.export.functions import Function, functions, heads
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params


@dataclasses.dataclass(frozen=True)
class SourceModel:
    """`params` are float32 host arrays, "fashionbert" and "patches", as `functions` take them."""

    workdir: Path
    run: Run
    step: int
    params: dict
    functions: dict[str, Function]

    @classmethod
    def open(cls, workdir: str | Path, step: int | None, with_heads: bool) -> "SourceModel":
        """The best checkpoint of a run, or that of `step`, with its pretraining `heads` where they are asked for.

        One device takes it, whatever mesh it was trained on.
        """
        run = Run.open(workdir)
        step, params = load_params(run, workdir, one_device(), step)
        params = jax.tree.map(np.asarray, {"patches": run.patches.params} | params)
        return cls(Path(workdir), run, step, params, functions(run) | (heads(run) if with_heads else {}))

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """What the live model makes of `arrays`, by output."""
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
