"""Patch features of an index's pictures, for a model that reads them again: computed once, one file a picture."""

import io
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from fbjax.core.console import progress
from fbjax.core.paths import atomic_write
from fbjax.inference.catalogue.embed_catalogue import model_sha256
from fbjax.inference.model import Model
from fbjax.parallel.mesh import pad_rows
from fbjax.serve.index.pictures import Pictures

ROWS_AT_ONCE = 32


class Features:
    """Patch features of one model, float16 [P, C] a picture, in a folder that it may share with others."""

    def __init__(self, pictures: Pictures, model: Model):
        self._pictures, self._model = pictures, model
        self._folder = pictures.beside(model_sha256(model)[:12])
        self._read = jax.jit(model.run.patches.apply)

    def of(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """{name: features} of pictures by their names; without those that are gone. Keeps what it has to compute."""
        found, missing = {}, {}
        for name in dict.fromkeys(names):
            if (path := self._path(name)).exists():
                found[name] = np.load(io.BytesIO(path.read_bytes()))
            elif picture := self._pictures.read(name):
                missing[name] = self._model.read_image(picture)
        if not missing:
            return found
        images = np.stack([*missing.values()])
        for start in range(0, len(images), ROWS_AT_ONCE):
            some = pad_rows(images[start : start + ROWS_AT_ONCE], ROWS_AT_ONCE)
            computed = np.asarray(self._read(self._model.variables["patches"], some), np.float16)
            for name, features in zip([*missing][start : start + ROWS_AT_ONCE], computed, strict=False):
                found[name] = features
                self._keep(name, features)
        return found

    def fill(self, names: Iterable[str]) -> None:
        """Computes what is missing of the pictures of these names."""
        missing = sorted(name for name in set(names) if name and not self._path(name).exists())
        parts = [missing[start : start + ROWS_AT_ONCE] for start in range(0, len(missing), ROWS_AT_ONCE)]
        for some in progress(parts, len(parts), "features to re-rank by"):
            self.of(some)

    def _keep(self, name: str, features: np.ndarray) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.save(file, features)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.npy"
