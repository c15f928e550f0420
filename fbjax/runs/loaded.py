"""A trained run: its parts, the parameters of one checkpoint, and their mesh."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from jax.sharding import Mesh

from fbjax.config.load import absolute
from fbjax.core.paths import as_path
from fbjax.data.batches.split import Split
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run
from fbjax.runs.state import abstract_state


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """What scoring, embedding and exporting start from."""

    workdir: Path = dataclasses.field(repr=False)
    run: Run = dataclasses.field(repr=False)
    step: int  # of the checkpoint
    params: dict = dataclasses.field(repr=False)  # what was trained: "fashionbert", and "patches" where they were
    mesh: Mesh = dataclasses.field(repr=False)

    @classmethod
    def load(
        cls, workdir: str | Path, step: int | None = None, mesh: Mesh | None = None, like: Run | None = None
    ) -> Self:
        """The best checkpoint in `workdir` by its validation, or that of `step`, on `mesh` (default: the config's).

        Raises FileNotFoundError where there is none, ValueError where its vocabulary or image tokens are not those of
        `like`.
        """
        run = Run.open_alike(workdir, like) if like else Run.open(workdir)
        mesh = mesh or make_mesh(run.config.mesh)
        shape = abstract_state(run.objective, run.optimizer, run.config, mesh)
        with Checkpoints(workdir) as checkpoints:
            there = checkpoints.steps()
            if step is None:
                step = checkpoints.best_step()
            if step not in there:
                known = f"there are {', '.join(map(str, there))}" if there else "there is none yet"
                wanted = "checkpoint" if step is None else f"checkpoint {step}"
                raise FileNotFoundError(f"no {wanted} in {workdir}: {known}")
            return cls(as_path(workdir), run, step, checkpoints.restore_params(step, shape), mesh)

    @classmethod
    def newest(cls, workdir: str | Path, like: Run, mesh: Mesh) -> Self:
        """The last checkpoint in `workdir`, which no validation figure has picked."""
        return cls.load(workdir, newest_step(workdir), mesh, like)

    @property
    def variables(self) -> dict:
        """What the scorer and the embedder take: "fashionbert", "patches" and, where texts are bags, "ngrams"."""
        ngrams = {"ngrams": self.run.ngrams} if self.run.ngrams else {}
        return {"patches": self.run.patches.params} | ngrams | self.params

    def records(self, data: str | Sequence[str] | None = None, split: str = "validation") -> Split:
        """A prepared `split` of the run's own tables, or of `data`, tables or globs, which are all "validation"."""
        return self.run.splits(data)[split]

    def catalogue(self, data: str | Sequence[str] | None = None) -> list[Split]:
        """Splits that together hold the products of `data`: where that is all tables of the run, its own two.

        These are prepared, and their patch features cached, already.
        """
        tables, own = [data] if isinstance(data, str) else data or (), self.run.config.data
        if own.validation and {absolute(table) for table in tables} == {own.train, own.validation}:
            splits = self.run.splits()
            return [splits["train"], splits["validation"]]
        return [self.records(data)]


def newest_step(workdir: str | Path) -> int | None:
    """The step of the last checkpoint, None where there is none."""
    with Checkpoints(workdir) as checkpoints:
        return max(checkpoints.steps(), default=None)
