"""Logs metrics and speed during training, and reads the metrics for the report."""

import contextlib
import math
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary import Writer
from tensorboard.util.tensor_util import make_ndarray
from tqdm import tqdm

from fbjax.config.schema import Config
from fbjax.core.console import duration, say
from fbjax.core.paths import as_path
from fbjax.monitoring.flops import StepWork
from fbjax.monitoring.goodput import COMPILE, EVALUATION, INPUT, STEP
from fbjax.monitoring.hardware import machine, peak_flops
from fbjax.monitoring.telemetry import Telemetry, curve_of
from fbjax.parallel.distributed import broadcast_from_first, is_first
from fbjax.runs.state import make_schedule

EVALUATION_SHARE = 0.05  # of the wall time, at most
FOLDER = "tensorboard"
PIECES = "text_pieces"  # a metric of the step that is no mean


class Log:
    """Writes metrics to the terminal and TensorBoard, and speeds also to the telemetry.

    Tokens and FLOPs are known only with `work`. Speeds are of the steps since the last log step. Their time includes
    waiting for input, but not evaluation and checkpoints.

    * ``step_seconds``, ``pairs_per_second``; ``tokens_per_second``: text pieces and image tokens that the encoder
      reads, without padding.
    * ``model_flops_per_second``, and ``utilisation``, its share of the peak from `hardware`.
    * ``input_wait_share``: of the steps' time; ``peak_memory_bytes``: of a device or, if unknown, of this process;
      ``goodput``: of the run so far.
    """

    work: StepWork | None = None

    def __init__(self, workdir: str | Path, config: Config, start: int, telemetry: Telemetry):
        self._config, self._telemetry = config.train, telemetry
        self._schedule = make_schedule(config.train)
        self._writer = Writer(str(as_path(workdir) / FOLDER)) if is_first() else None
        quiet = None if is_first() else True  # None: only without a terminal
        self._bar = tqdm(total=config.train.num_steps, initial=start, desc="train", dynamic_ncols=True, disable=quiet)
        self._pending: list[tuple[dict, int]] = []  # metrics and text length
        self._start_step = self._step = start
        self._evaluation_cost, self._skipped_validation = 0.0, False
        self.last: dict[str, float] = {}  # the newest figures of each kind
        self._flops = 0.0  # of all steps but the first, which warms up
        self._peak = peak_flops(config.model.dtype, telemetry.earlier("peak"))
        telemetry.enter_loop(start, config.train.num_steps, machine=machine(), peak=self._peak)

    @contextlib.contextmanager
    def waiting(self):
        """Measures the device's wait for input: the whole block if the last step is done before it ends, else 0.

        The wait for the very first batch belongs to the start-up.
        """
        if self._step == self._start_step and not self._pending:
            yield
            self._telemetry.stepping()
            return
        with self._telemetry.spent(lambda: INPUT if self._idle() else STEP):
            yield

    def _idle(self) -> bool:
        return not self._pending or self._pending[-1][0]["loss"].is_ready()

    def add(self, step: int, metrics: dict, text_tokens: int) -> None:
        """Adds the metrics of the step that led to `step`; writes them at log steps."""
        self._pending.append((metrics, text_tokens))
        self._bar.update(1)
        if step == self._start_step + 1:
            jax.block_until_ready(metrics)
            self._steady = self._window = self._telemetry.seconds()
            say(f"compiled in {duration(self._steady[COMPILE])}")
        if step % self._config.log_every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Fetches the metrics since the last call, checks that they are finite, and writes their means."""
        if not self._pending:
            return
        metrics, lengths = zip(*self._pending, strict=True)
        fetched, self._pending = jax.device_get(metrics), []
        means = {name: _mean(name, [m[name] for m in fetched]) for name in fetched[0] if name != PIECES}
        self._check_finite(step, len(fetched), means)
        means["learning_rate"] = float(self._schedule(step))
        first = self._step == self._start_step
        figures = self._speed([m[PIECES] for m in fetched[first:]], lengths[first:])
        self._step = step
        self.last |= means
        self._add_scalars(step, means | {f"telemetry/{name}": value for name, value in figures.items()})
        self._telemetry.checkpoint_figures(step, figures)
        self._show(step, means | figures)

    def _speed(self, num_pieces: list, lengths: list[int]) -> dict[str, float]:
        """The figures of the steps up to now; their texts have `num_pieces` pieces and are padded to `lengths`."""
        figures = {"peak_memory_bytes": peak_memory(), "goodput": self._telemetry.goodput()}
        now = self._telemetry.seconds()
        seconds, waited = (self._between(self._window, now, *causes) for causes in ((STEP, INPUT), (INPUT,)))
        self._window = now
        if not lengths:
            return figures
        figures |= {"step_seconds": seconds / len(lengths), "input_wait_share": waited / seconds}
        figures["pairs_per_second"] = 2 * self._config.batch_size * len(lengths) / seconds
        if self.work:
            flops = sum(self.work.flops[length] for length in lengths)
            self._flops += flops
            figures["tokens_per_second"] = sum(map(self.work.tokens, num_pieces)) / seconds
            figures["model_flops_per_second"] = flops / seconds
            figures["utilisation"] = flops / seconds / self._peak["flops"]
        return figures

    def evaluate(self, step: int, figures: Callable[[], dict[str, float]], must: bool) -> dict[str, float] | None:
        """The checkpoint's metrics by `figures`; None where these would take more than their share of the time."""
        before = self._telemetry.seconds()
        allowed = EVALUATION_SHARE * sum(before.values())
        if broadcast_from_first(not must and before[EVALUATION] + self._evaluation_cost > allowed):
            if not self._skipped_validation:
                say(f"step {step}: validation put off, it would take more than {EVALUATION_SHARE:.0%} of the time")
            self._skipped_validation = True
            return None
        with self._telemetry.spent(EVALUATION):
            found = figures()
        self._evaluation_cost = self._between(before, self._telemetry.seconds(), EVALUATION)
        shown = ", ".join(f"{name.upper()} {value:.3f}" for name, value in found.items())
        say(f"step {step}: validation {shown} ({duration(self._evaluation_cost)})")
        named = {f"validation/{name}": value for name, value in found.items()}
        self.last |= named
        self._add_scalars(step, named)
        return found

    def _add_scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer:
            for name, value in values.items():
                if math.isfinite(value):  # some methods have no gradient norms
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def summary(self) -> None:
        steps = self._step - self._start_step
        if steps < 2:
            return
        now = self._telemetry.seconds()
        seconds, waited = (self._between(self._steady, now, *causes) for causes in ((STEP, INPUT), (INPUT,)))
        used = f"utilisation {self._flops / seconds / self._peak['flops']:.0%}, " if self.work else ""
        say(
            f"{steps} steps in {duration(sum(now.values()))}: "
            f"{2 * self._config.batch_size * (steps - 1) / seconds:.0f} pairs/s, {used}"
            f"input waiting {waited / seconds:.1%}, evaluation {duration(now[EVALUATION])}, "
            f"goodput {self._telemetry.goodput():.1%}, peak memory {peak_memory() / 2**30:.1f} GiB"
        )

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    @staticmethod
    def _between(before: Counter, after: Counter, *causes: str) -> float:
        return sum(after[cause] - before[cause] for cause in causes)

    def _check_finite(self, step: int, num_steps: int, means: dict) -> None:
        losses = {name: value for name, value in means.items() if name.endswith("loss") or name == "gradient_norm"}
        if not all(map(math.isfinite, losses.values())):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise FloatingPointError(
                f"not finite between steps {step - num_steps} and {step}: {shown}; nothing of it was saved. Lower "
                f"train.learning_rate ({self._config.learning_rate:g}) or train.clip_norm "
                f"({self._config.clip_norm:g}) and start a new workdir"
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


def peak_memory() -> int:
    """The peak memory in bytes of a device of this process, or of the process if the devices do not report it."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max(of_device.get("peak_bytes_in_use", 0) for of_device in statistics)
    unit = 1 if sys.platform == "darwin" else 1024
    return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _mean(name: str, values: list) -> float:
    """The mean; of a task's gradient norm without NaNs, NaN if there are only NaNs."""
    known = [value for value in values if not (name.endswith("/gradient_norm") and math.isnan(value))]
    return float(np.mean(known)) if known else math.nan


def read_curves(workdir: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of every metric of a run; of repeated steps the last value."""
    folder = as_path(workdir) / FOLDER
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        name: curve_of({event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(name)})
        for name in events.Tags()["tensors"]
    }
