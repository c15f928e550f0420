"""Checkpoints of the train state: the only file that knows Orbax.

Written asynchronously into a temporary folder and renamed when whole, so that a kill leaves the one before. The last
n are kept, and the best by validation: by MRR for towers, by AUC for a matcher.
"""

import contextlib
import errno
import json
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from fbjax.core.paths import as_path, is_remote
from fbjax.parallel.distributed import all_processes, barrier, is_first

# made in the background, a folder that cannot be made leaves a thread that waits ten minutes for it (Orbax 0.12.8)
FOLDERS_FIRST = ocp.options.AsyncOptions(create_directories_asynchronously=False)
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``. Use as a context manager: leaving it waits for the last write.

    Without `keep_last` it is open for reading, and ignores what another process is writing.
    """

    def __init__(self, workdir: str | Path, keep_last: int | None = None, say: Callable[[str], None] = print):
        workdir = as_path(workdir)
        if is_remote(workdir) and not find_spec("google.cloud.storage"):
            raise ModuleNotFoundError(f"checkpoints in {workdir} need google-cloud-storage: pip install 'fbjax[gcs]'")
        self._folder = (workdir if is_remote(workdir) else workdir.absolute()) / "checkpoints"
        self._say = say
        self._pending = None
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
            with contextlib.suppress(Exception):  # again what a write has said already
                self._orbax.close()

    def save(self, step: int, state, metrics: dict | None = None) -> None:
        """Starts writing `state`; first waits for the write before it, and raises what went wrong there."""
        self.wait()
        try:
            self._pending = self._orbax.save_async(step, state, metrics=metrics)
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

    def restore_newest(self, abstract_state):
        """(step, state) of the newest readable checkpoint, or None where there is none.

        One that cannot be read is reported, renamed to ``unreadable-<step>`` and the one before is taken.
        """
        for step in reversed(self.steps()):
            state, reason = None, ""
            try:
                state = self._orbax.load(step, abstract_state)
            except Exception as error:  # a damaged file surfaces as any of a dozen kinds
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            if all_processes(state is not None):
                return step, state
            self._set_aside(step, reason or "in another process")
            self._orbax.reload()
        return None

    def restore_params(self, step: int, abstract_state):
        """The parameters of one checkpoint, placed as `abstract_state` says; its optimiser state stays on disk."""
        skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, abstract_state.opt_state)
        return self._orbax.load(step, abstract_state.replace(opt_state=skipped)).params

    def best_step(self) -> int | None:
        """The step that was best on the validation sample, or the newest where none was evaluated."""
        scored = [(_quality(c.metrics), c.step) for c in self._orbax.checkpoints if c.metrics]
        return max(scored)[1] if scored else max(self.steps(), default=None)

    def _set_aside(self, step: int, reason: str) -> None:
        self._say(f"checkpoint {step} cannot be read ({reason}); falling back to the one before")
        if is_first():
            (self._folder / str(step)).rename(self._folder / f"unreadable-{step}")
        barrier(f"checkpoint {step} set aside")

    def _set_aside_damaged_metrics(self) -> None:
        """Orbax reads every checkpoint's metrics when it opens the folder, and fails as a whole on a damaged file."""
        damaged = []
        for path in sorted(self._folder.glob("[0-9]*/metrics/metrics")):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                damaged.append((int(path.parent.parent.name), f"{path.name}: {error}"))
        barrier("metrics looked at")
        for step, reason in damaged:
            self._set_aside(step, reason)

    def _explained(self, error: Exception) -> OSError:
        text = str(error)
        if "No space left" in text or "RESOURCE_EXHAUSTED" in text or getattr(error, "errno", None) == errno.ENOSPC:
            return OSError(
                errno.ENOSPC, f"no space left for a checkpoint under {self._folder}: free some and run again to resume"
            )
        return OSError(f"cannot write a checkpoint under {self._folder}: {text.splitlines()[0] if text else error!r}")


def _quality(metrics: dict[str, float]) -> float:
    return metrics.get("mrr", metrics["auc"])
