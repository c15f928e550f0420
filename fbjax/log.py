"""What a run says of itself: metrics on their way to the terminal and to TensorBoard, and read back for the report."""

import contextlib
import math
import resource
import time
from pathlib import Path

import jax
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary import Writer
from tensorboard.util.tensor_util import make_ndarray
from tqdm import tqdm

from fbjax.checkpoint import BEST_METRIC
from fbjax.config import Config
from fbjax.console import duration, say
from fbjax.evaluation.evaluate import ValidationSample
from fbjax.step import make_schedule
from fbjax.workdir import note_time

EVALUATION_SHARE = 0.05  # of the wall time, at most
FOLDER = "tensorboard"


class Log:
    """Metrics on their way to the terminal and to TensorBoard, and the clock of the run."""

    def __init__(self, workdir: str | Path, config: Config, start: int):
        self._workdir, self._config = workdir, config.train
        self._schedule = make_schedule(config.train)
        self._writer = Writer(str(Path(workdir) / FOLDER))
        self._bar = tqdm(total=config.train.num_steps, initial=start, desc="train", dynamic_ncols=True, disable=None)
        self._pending: list[dict] = []
        self._start_step = self._step = start
        self._begun = self._window = time.perf_counter()
        self._waited = self._waited_before = self._evaluating = self._evaluation_cost = 0.0
        self._skipped_validation = False
        self._uncounted = 1  # the first step: it warms up, no rate should count it

    @contextlib.contextmanager
    def waiting(self):
        """Times what the device waits for its input: nothing, where that is there before the last step is done.

        Where it is not, it may have become idle any time since: all of the block counts.
        """
        begin = time.perf_counter()
        yield
        if not self._pending or self._pending[-1]["loss"].is_ready():
            self._waited += time.perf_counter() - begin

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of the step that led to `step`; writes them out at log steps."""
        self._pending.append(metrics)
        self._bar.update(1)
        if step == self._start_step + 1:
            jax.block_until_ready(metrics)
            self._steady = self._window = time.perf_counter()
            self._waited = self._waited_before = 0.0
            say(f"compiled in {duration(self._window - self._begun)}")
        if step % self._config.log_every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Fetches the metrics since the last time, checks that they are finite, and writes their means."""
        if not self._pending:
            return
        fetched, self._pending = jax.device_get(self._pending), []
        means = {name: _mean(name, [m[name] for m in fetched]) for name in fetched[0]}
        self._check_finite(step, len(fetched), means)
        now = time.perf_counter()
        counted, self._uncounted = len(fetched) - self._uncounted, 0
        if counted:
            means["pairs_per_second"] = 2 * self._config.batch_size * counted / (now - self._window)
            means["input_wait_share"] = (self._waited - self._waited_before) / (now - self._window)
        means["learning_rate"] = float(self._schedule(step))
        self._window, self._waited_before, self._step = now, self._waited, step
        for name, value in means.items():
            if math.isfinite(value):  # gradient norms are unknown to methods that need none
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._show(step, means)

    def evaluate(self, step: int, sample: ValidationSample, variables, must: bool) -> dict | None:
        """The checkpoint's metrics, or None where evaluating would take more than its share of the wall time."""
        elapsed = time.perf_counter() - self._begun
        if not must and self._evaluating + self._evaluation_cost > EVALUATION_SHARE * elapsed:
            if not self._skipped_validation:
                say(f"step {step}: validation put off, it would take more than {EVALUATION_SHARE:.0%} of the time")
            self._skipped_validation = True
            return None
        begin = time.perf_counter()
        value = sample.auc(variables)
        self._evaluation_cost = time.perf_counter() - begin
        self._evaluating += self._evaluation_cost
        self._window += self._evaluation_cost
        say(f"step {step}: validation AUC {value:.3f} ({duration(self._evaluation_cost)})")
        self._writer.add_scalar("validation/auc", value, step)
        return {BEST_METRIC: value}

    def summary(self) -> None:
        steps = self._step - self._start_step
        if steps < 2:
            return
        seconds = time.perf_counter() - self._steady - self._evaluating
        say(
            f"{steps} steps in {duration(time.perf_counter() - self._begun)}: "
            f"{2 * self._config.batch_size * (steps - 1) / seconds:.0f} pairs/s, "
            f"input waiting {self._waited / seconds:.1%}, evaluation {duration(self._evaluating)}, "
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
        )

    def close(self) -> None:
        self._bar.close()
        self._writer.close()
        note_time(self._workdir, "training", time.perf_counter() - self._begun)

    def _check_finite(self, step: int, num_steps: int, means: dict) -> None:
        losses = {name: value for name, value in means.items() if name.endswith("loss") or name == "gradient_norm"}
        if not all(map(math.isfinite, losses.values())):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise FloatingPointError(
                f"not finite between steps {step - num_steps} and {step}: {shown}; nothing of it was saved. "
                "Lower train.learning_rate or train.clip_norm and start a new workdir"
            )

    def _show(self, step: int, means: dict) -> None:
        tasks = [name.removesuffix("/loss") for name in means if name.endswith("/loss")]
        losses = "  ".join(f"{t} {means[f'{t}/loss']:.3f} (w {means[f'{t}/weight']:.2f})" for t in tasks)
        rate = means.get("pairs_per_second", math.nan)
        speed = f"  {rate:.0f} pairs/s" if rate > 0 else ""
        accuracies = "  ".join(f"{n.replace('_', ' ')} {v:.3f}" for n, v in means.items() if n.endswith("_accuracy"))
        if not self._bar.disable:
            self._bar.set_postfix_str(losses + speed)
            return
        left = 2 * self._config.batch_size * (self._config.num_steps - step) / rate
        speed += f"  {duration(left)} left" if speed else ""
        say(f"step {step}/{self._config.num_steps}  {losses}  {accuracies}{speed}")


def _mean(name: str, values: list) -> float:
    """The mean; of a task's gradient norm over those steps that know it, NaN where none does."""
    known = [value for value in values if not (name.endswith("/gradient_norm") and math.isnan(value))]
    return float(np.mean(known)) if known else math.nan


def read_curves(workdir: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of every metric that a run has written; steps that a resumed run did again count once."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    curves = {}
    for name in events.Tags()["tensors"]:
        values = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
        curves[name] = np.array(sorted(values)), np.array([values[step] for step in sorted(values)])
    return curves
