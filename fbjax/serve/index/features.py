"""Patch features of an index's pictures, for a model that reads them again: computed once, one file a picture."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from fbjax.core.paths import atomic_write
from fbjax.inference.model import Model
from fbjax.parallel.mesh import pad_rows
from fbjax.serve.index.pictures import Pictures

ROWS_AT_ONCE = 32


class Features:
    """Patch features of one model, float16 [P, C] a picture, in a folder that it may share with others."""

    def __init__(self, folder: Path, model: Model):
        self._folder, self._model = folder, model
        self._read = jax.jit(model.run.patches.apply)

    def of(self, names: Iterable[str], pictures: Pictures) -> Mapping[str, np.ndarray]:
        """{name: features} of pictures by their names; without those that are gone. Keeps what it has to compute."""
        found, missing = {}, {}
        for name in dict.fromkeys(names):
            if (path := self._path(name)).exists():
                found[name] = np.load(io.BytesIO(path.read_bytes()))
            elif picture := pictures.read(name):
                missing[name] = self._model.read_image(picture)
        for start in range(0, len(missing), ROWS_AT_ONCE):
            some = [*missing][start : start + ROWS_AT_ONCE]
            images = pad_rows(np.stack([missing[name] for name in some]), ROWS_AT_ONCE)
            computed = np.asarray(self._read(self._model.variables["patches"], images), np.float16)
            for name, features in zip(some, computed, strict=False):
                found[name] = features
                self._keep(name, features)
        return found

    def _keep(self, name: str, features: np.ndarray) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.save(file, features)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.npy"
