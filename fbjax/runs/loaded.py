"""A trained run: its parts, the parameters of one checkpoint, and their mesh."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
from jax.sharding import Mesh

from fbjax.config.load import absolute
from fbjax.config.schema import LoraConfig
from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.batches.split import Split
from fbjax.model.lora import merged
from fbjax.parallel.mesh import make_mesh, shardings_of
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run, write_run
from fbjax.runs.state import abstract_state, init_state
from fbjax.tasks.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """What scoring, embedding and exporting start from."""

    workdir: Path = dataclasses.field(repr=False)
    run: Run = dataclasses.field(repr=False)
    step: int  # of the checkpoint
    params: dict = dataclasses.field(repr=False)  # "fashionbert", and "patches" where they train; factors merged in
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
            trained = checkpoints.restore_params(step, shape)
            params = merged(checkpoints.restore_base(step, shape), trained)
            return cls(as_path(workdir), run, step, params, mesh)

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


def write_params(run: Run, params: dict, workdir: Path, mesh: Mesh) -> None:
    """Makes `workdir` a run like `run` with `params`, "fashionbert" and "patches", as its checkpoint of step 0.

    Training then starts with a fresh optimiser. Low-rank factors are among the `params` by now: the run has none.
    """
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, lora=LoraConfig()))
    write_run(run, workdir)
    state = init_state(run.objective, run.optimizer, run.config, mesh)
    state = state.with_all(jax.device_put(params, shardings_of(state.all_params)))
    with Checkpoints(workdir, keep_last=1) as checkpoints:
        checkpoints.save_base(state.base)
        checkpoints.save(0, state)


def newest_step(workdir: str | Path) -> int | None:
    """The step of the last checkpoint, None where there is none."""
    with Checkpoints(workdir) as checkpoints:
        return max(checkpoints.steps(), default=None)


def load_teacher(run: Run, mesh: Mesh) -> tuple[Run, dict | None]:
    """`run` with the teacher that its config names, and the teacher's parameters; `run` itself and None without one.

    Raises FileNotFoundError where there is no such run, ValueError where `run` cannot learn from it.
    """
    config = run.config
    if not (workdir := config.teacher):
        return run, None
    name = f"the teacher in {workdir}"
    try:
        loaded = LoadedRun.load(workdir, mesh=mesh, like=run)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{name} cannot be used: {error}") from None
    theirs, ours = loaded.run.config.model, config.model
    found = [] if loaded.run.scores_pairs else ["scores no pairs: name a run that has tia among its tasks"]
    if theirs.text_tokens < ours.text_tokens:
        found.append(
            f"reads texts of {theirs.text_tokens} tokens, this run of {ours.text_tokens} (use as many or fewer)"
        )
    if "patches" in loaded.params:
        found.append("has trained its patch network, which this run does not have (name another)")
    found += [problem for task in config.tasks.values() for problem in task.check_teacher(ours, theirs)]
    if found:
        raise ValueError("; ".join(f"{name} {problem}" for problem in found))
    say(f"taught by {workdir}, step {loaded.step}: {theirs.num_layers} layers, this run {ours.num_layers}")
    return dataclasses.replace(run, teacher=Teacher.of(loaded.run.model)), loaded.params["fashionbert"]
