"""Checkpoints of the train state: the only file that knows Orbax.

Written asynchronously into a temporary folder and renamed when whole, so that a kill leaves the one before. Checksums
of its files follow at once, and are compared before it is read; a store has its own. The last n are kept, and the best
by validation: by MRR for towers, by AUC for a matcher.

A checkpoint holds what trains. The rest, the base, is written once, into ``workdir/base.npz``; each checkpoint notes
its SHA-256, so that it is never read with another base.
"""

import contextlib
import errno
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from fbjax.core.checksums import damage, has_sums, sha256, write_sums
from fbjax.core.console import say
from fbjax.core.paths import as_path, atomic_write, is_remote, local_copy
from fbjax.model.weights.files import write_npz
from fbjax.parallel.distributed import all_processes, barrier, is_first
from fbjax.parallel.mesh import on_host
from fbjax.runs.state import TrainState

FOLDER, BASE, SET_ASIDE = "checkpoints", "base.npz", "unreadable-"
METRICS = "metrics/metrics"  # Orbax's file of a checkpoint's metrics

# made in the background, a folder that cannot be made leaves a thread that waits ten minutes for it (Orbax 0.12.8)
FOLDERS_FIRST = ocp.options.AsyncOptions(create_directories_asynchronously=False)
logging.getLogger("absl").setLevel(logging.ERROR)
# hundreds of lines for each failed write or read, which we say in one
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``. Use as a context manager: leaving it waits for the last write.

    Without `keep_last` it is open for reading, and ignores what another process is writing.
    """

    def __init__(self, workdir: str | Path, keep_last: int | None = None, say: Callable[[str], None] = say):
        workdir = as_path(workdir)
        if is_remote(workdir) and not find_spec("google.cloud.storage"):
            raise ModuleNotFoundError(f"checkpoints in {workdir} need google-cloud-storage: pip install 'fbjax[gcs]'")
        self._folder = (workdir if is_remote(workdir) else workdir.absolute()) / FOLDER
        self._base = self._folder.parent / BASE
        self._noted = {}  # with every checkpoint: what it needs beside it
        self._say = say
        self._pending: Future | None = None
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._set_aside_damaged_metrics()
        policies = ocp.training.preservation_policies
        keep = [
            policies.LatestN(keep_last or 1),
            policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
        ]
        with ocp.Context(async_options=FOLDERS_FIRST):
            self._orbax = ocp.training.Checkpointer(
                self._folder,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                    1
                ),  # the loop scores_matches
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=keep_last is not None,
            )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except OSError:
            if kind is None:
                raise
        finally:
            self._finisher.shutdown()
            with contextlib.suppress(Exception):  # again what a write has said already
                self._orbax.close()

    def save_base(self, base: dict) -> None:
        """Writes the parameters that do not train, once, before the first checkpoint. Raises OSError."""
        arrays = on_host(base)
        if is_first():
            self._base.unlink(missing_ok=True)
            try:
                if arrays:
                    with atomic_write(self._base) as file:
                        write_npz(file, arrays)
            except OSError as error:
                raise self._explained(error) from error
        barrier("base written")
        self._noted = {BASE: sha256(self._base)} if arrays else {}

    def save(self, step: int, state: TrainState, metrics: dict | None = None) -> None:
        """Starts writing `state` but its base; first waits for the write before it, and raises what went wrong."""
        self.wait()
        state = state.replace(base=None)
        try:
            response = self._orbax.save_async(step, state, metrics=metrics, custom_metadata=self._noted)
            self._pending = self._finisher.submit(self._finish, step, response)
        except Exception as error:
            raise self._explained(error) from error

    def wait(self) -> None:
        """Until the last write is on disk; raises OSError where it failed."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except Exception as error:
            raise self._explained(error) from error

    def steps(self) -> list[int]:
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def restore_newest(self, abstract_state: TrainState) -> tuple[int, TrainState] | None:
        """(step, state) of the newest readable checkpoint and its base, or None where there is none.

        One that cannot be read is reported, renamed to ``unreadable-<step>`` and the one before is taken. Raises
        ValueError where all that there are cannot be read, or their base.
        """
        steps = self.steps()
        for step in reversed(steps):
            state, reason = None, self._damage(step)
            try:
                state = None if reason else self._orbax.load(step, abstract_state.replace(base=None))
            except Exception as error:  # a damaged file surfaces as any of a dozen kinds
                reason = _first_line(error)
            if all_processes(state is not None):
                return step, state.replace(base=self.restore_base(step, abstract_state))
            self._set_aside(step, reason or "in another process")
            self._orbax.reload()
        check_not_all_set_aside(self._folder.parent)
        return None

    def restore_params(self, step: int, abstract_state: TrainState) -> dict:
        """The trained parameters of one checkpoint, placed as `abstract_state` says; its optimiser state stays on disk.

        Raises ValueError with the other steps where it is damaged.
        """
        return self._restore_some(step, abstract_state.params)

    def restore_base(self, step: int, abstract_state: TrainState) -> dict:
        """The parameters that did not train, as checkpoint `step` needs them. Raises ValueError where they are others.

        A checkpoint of an older fbjax holds them itself.
        """
        if not jax.tree.leaves(abstract_state.base):
            return abstract_state.base
        expected = (self._orbax.metadata(step).custom_metadata or {}).get(BASE)
        if expected is None:
            return self._restore_some(step, abstract_state.base)
        found = sha256(self._base) if self._base.is_file() else "nothing"
        if found != expected:
            raise ValueError(
                f"{self._base} is not the base that checkpoint {step} was trained on (SHA-256 {expected[:12]}.., found "
                f"{found[:12]}): copy that file there again, or train in another workdir"
            )
        self._noted = {BASE: expected}
        with local_copy(self._base) as file, np.load(file) as arrays:
            return _placed(arrays, abstract_state.base, self._base)

    def _restore_some(self, step: int, abstract_params: dict) -> dict:
        reason = self._damage(step)
        if not reason:
            loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
            try:
                with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
                    return self._orbax.load(step, {"params": abstract_params})["params"]
            except Exception as error:
                reason = _first_line(error)
        others = ", ".join(str(other) for other in self.steps() if other != step)
        remedy = f"name another one: {others}" if others else "copy it there again, or train anew in another workdir"
        raise ValueError(f"checkpoint {step} in {self._folder} cannot be read ({reason}): {remedy}")

    def best_step(self) -> int | None:
        """The step that was best on the validation sample, or the newest where none was evaluated."""
        scored = [(_quality(c.metrics), c.step) for c in self._orbax.checkpoints if c.metrics]
        return max(scored)[1] if scored else max(self.steps(), default=None)

    def _finish(self, step: int, response) -> None:
        """Waits until a checkpoint is whole, then notes its checksums."""
        if response is not None and response.result() and is_first() and not is_remote(self._folder):
            write_sums(self._folder / str(step))

    def _damage(self, step: int) -> str:
        """What is wrong with the files of a checkpoint, which the first process reads for all; "" for nothing."""
        folder, reason = self._folder / str(step), ""
        if is_first() and not is_remote(folder):
            reason = damage(folder)
            if not has_sums(folder):  # an older fbjax wrote it, or a kill came between
                self._say(f"checkpoint {step} has no checksums: its content is not checked")
        return reason if all_processes(not reason) else reason or "by the first process"

    def _set_aside(self, step: int, reason: str) -> None:
        self._say(f"checkpoint {step} cannot be read ({reason}); falling back to the one before")
        if is_first():
            names = [f"{SET_ASIDE}{step}", *(f"{SET_ASIDE}{step}-{again}" for again in range(2, 1000))]
            free = next(name for name in names if not (self._folder / name).exists())
            (self._folder / str(step)).rename(self._folder / free)
        barrier(f"checkpoint {step} set aside")

    def _set_aside_damaged_metrics(self) -> None:
        """Orbax reads every checkpoint's metrics when it opens the folder, and fails as a whole on a damaged file."""
        damaged = []
        for path in sorted(self._folder.glob(f"[0-9]*/{METRICS}")):
            folder = path.parent.parent
            try:
                json.loads(path.read_text())
                reason = damage(folder, [METRICS])
            except ValueError as error:
                reason = f"{path.name}: {error}"
            if reason:
                damaged.append((int(folder.name), reason))
        barrier("metrics looked at")
        for step, reason in damaged:
            self._set_aside(step, reason)

    def _explained(self, error: Exception) -> OSError:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC or _is_full(str(error)):
            return OSError(
                errno.ENOSPC, f"no space left for a checkpoint under {self._folder}: free some and run again to resume"
            )
        return OSError(f"cannot write a checkpoint under {self._folder}: {_first_line(error)}")


def _placed(arrays: Any, shapes: dict, path: Path) -> dict:
    """The `arrays` of `path` as `shapes` places them. Raises ValueError where they are of another config."""
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    found = {name: arrays[name] for name in arrays}
    unlike = sorted(name for name in flat.keys() | found.keys() if _shape(flat, name) != _shape(found, name))
    if unlike:
        listed = ", ".join(unlike[:3]) + ", .." * (len(unlike) > 3)
        raise ValueError(f"{path} does not fit the config, in {listed}: put the run's own config there again")
    placed = {name: jax.device_put(found[name], shape.sharding) for name, shape in flat.items()}
    return flax.traverse_util.unflatten_dict(placed, sep="/")


def _shape(arrays: dict, name: str) -> tuple[int, ...] | None:
    return arrays[name].shape if name in arrays else None


def check_not_all_set_aside(workdir: Path) -> None:
    """Raises ValueError where a workdir once had checkpoints and none of them can be read.

    A run must not begin anew there without a word.
    """
    folder = workdir / FOLDER
    aside = sorted(path.name for path in folder.glob(f"{SET_ASIDE}*"))
    if aside and not any(folder.glob("[0-9]*")):
        raise ValueError(
            f"no checkpoint in {folder} can be read ({', '.join(aside)}): copy one back under its number, or train "
            "anew in another --workdir"
        )


def _is_full(text: str) -> bool:
    return "No space left" in text or "RESOURCE_EXHAUSTED" in text


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _quality(metrics: dict[str, float]) -> float:
    return metrics.get("mrr", metrics["auc"])
