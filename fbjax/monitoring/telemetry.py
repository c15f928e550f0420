"""The time account of a run, in the workdir's ``telemetry.jsonl``. A kill loses at most the last seconds.

Every line is an event, and lines are only appended. `fbjax.monitoring.goodput` evaluates them.

* ``{"began": Unix time}``: a process starts to train.
* ``{"from": step, "of": steps, "machine": .., "peak": {..}}``: the process enters the loop at that step.
* ``{"at": Unix time, "spent": {cause: seconds}, "step": s}``: the causes of the time since the previous line; at least
  s steps are done. At log steps also ``"figures"`` from `fbjax.monitoring.logger`.
* ``{"ended": how}``: the process ends normally.
* ``{"noted": stage, "seconds": ..}``: the time of another command on this run.
"""

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fbjax.core.paths import append, as_path, is_remote
from fbjax.monitoring.goodput import START_UP, STEP, split

FILE = "telemetry.jsonl"
HEARTBEAT_SECONDS, REMOTE_HEARTBEAT_SECONDS = 5.0, 60.0  # between lines
LATEST = 2.0**36  # Unix time, and seconds of anything: beyond, a number is damage


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(value) -> bool:
    return _is_number(value) and 0 <= value < LATEST


def _is_step(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LATEST


def _are(fits: Callable) -> Callable:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_flops(value) -> bool:
    return _is_number(value) and value > 0


def _is_text(value) -> bool:
    return isinstance(value, str)


FIELDS = {  # of an event: what its value must be
    "began": _is_time,
    "from": _is_step,
    "of": _is_step,
    "machine": _is_text,
    "peak": lambda peak: isinstance(peak, dict) and _is_flops(peak.get("flops")) and _is_text(peak.get("of")),
    "at": _is_time,
    "spent": _are(_is_time),
    "step": lambda step: step is None or _is_step(step),
    "figures": _are(_is_number),
    "ended": _is_text,
    "noted": _is_text,
    "seconds": _is_time,
}
TOGETHER = {"from": "of", "spent": "step", "figures": "step", "noted": "seconds"}  # the second goes with the first


class Telemetry:
    """A context manager that accounts for every second since `begun` (Unix time; default: now).

    Every process of a run measures, and the one with `writes` writes the file. On a full disk the run continues, and
    the next line includes the time of the missing lines.
    """

    def __init__(self, workdir: str | Path, begun: float | None = None, writes: bool = True):
        now = time.time()
        self._begun = now if begun is None else begun
        self._zero = time.perf_counter() - (now - self._begun)  # a clock that is never adjusted
        self._earlier = read_events(workdir)
        self._counted_before = self._wall_before = 0.0
        self._doing: list[str | Callable[[], str]] = [START_UP]
        self._accounted, self._step = 0.0, None
        self._seconds, self._unwritten = Counter(), Counter()
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._path = as_path(workdir) / FILE if writes else None
        self._cut = bool(self._earlier)  # a kill may have cut the last line
        self._write({"began": round(self._begun, 3)})
        self._beating = threading.Thread(target=self._beat, name="telemetry", daemon=True)
        self._beating.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._stop.set()
        self._beating.join()
        self._mark()
        self._write({"ended": kind.__name__ if kind else "done"})

    @contextlib.contextmanager
    def spent(self, cause: str | Callable[[], str]):
        """Assigns the time of a block to `cause`; a function is called at the end and at every heartbeat."""
        self._account()
        self._doing.append(cause)
        try:
            yield
        finally:
            self._account()
            self._doing.pop()

    def enter_loop(self, step: int, num_steps: int, **about) -> None:
        """Starts at the state of `step`: the later steps of earlier attempts are lost."""
        event = {"from": step, "of": num_steps} | about
        before = split([*self._earlier, {"began": self._begun}, event])
        self._counted_before, self._wall_before = before.seconds.get(STEP, 0.0), before.wall
        self._mark()
        self._step = step
        self._write(event)

    def stepping(self) -> None:
        """From now on, time without another cause belongs to steps."""
        self._account()
        self._doing[0] = STEP

    def checkpoint_figures(self, step: int, figures: dict[str, float]) -> None:
        """Writes that `step` is done, with its `figures`."""
        self._step = step
        self._mark({"figures": {name: float(f"{value:.5g}") for name, value in figures.items()}})

    def seconds(self) -> Counter:
        """This process's seconds up to now, by cause."""
        with self._lock:
            self._account()
            return self._seconds.copy()

    def goodput(self) -> float:
        """The goodput of the run so far, with earlier attempts."""
        seconds = self.seconds()
        return (self._counted_before + seconds[STEP]) / (self._wall_before + sum(seconds.values()))

    def earlier(self, name: str) -> list:
        """The values of `name` in events of earlier attempts."""
        return [event[name] for event in self._earlier if name in event]

    def _account(self) -> None:
        with self._lock:
            now, cause = time.perf_counter() - self._zero, self._doing[-1]
            cause = cause if isinstance(cause, str) else cause()
            for account in (self._seconds, self._unwritten):
                account[cause] += now - self._accounted
            self._accounted = now

    def _mark(self, more: dict | None = None) -> None:
        """Writes the causes of the time since the last line; the rounding error goes into the next line."""
        with self._lock:
            self._account()
            spent = {cause: part for cause, seconds in self._unwritten.items() if (part := round(seconds, 3))}
            event = {"at": round(self._begun + self._accounted, 3), "spent": spent, "step": self._step}
            if self._write(event | (more or {})):
                self._unwritten.subtract(spent)

    def _write(self, event: dict) -> bool:
        if self._path is None:
            return False
        with self._lock:
            written = _append(self._path, event, new_line=self._cut)
            self._cut = not written
        return written

    def _beat(self) -> None:
        while not self._stop.wait(REMOTE_HEARTBEAT_SECONDS if is_remote(self._path) else HEARTBEAT_SECONDS):
            self._mark()


def log_event(workdir: str | Path, stage: str, seconds: float) -> None:
    """Notes the time of another command; on a full disk the command continues without the note."""
    _append(as_path(workdir) / FILE, {"noted": stage, "seconds": round(seconds, 1)})


def _append(path: Path, event: dict, new_line: bool = False) -> bool:
    """Appends a line; returns False if it cannot be written."""
    try:
        append(path, "\n" * new_line + json.dumps(event) + "\n")
    except OSError:
        return False
    return True


def read_events(workdir: str | Path) -> list[dict]:
    """All events of a run in order, without lines that are none: a kill or a full disk cuts some."""
    path, events = as_path(workdir) / FILE, []
    for line in path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if _is_event(event):
                events.append(event)
    return events


def _is_event(event) -> bool:
    return (
        isinstance(event, dict)
        and all(fits(event[name]) for name, fits in FIELDS.items() if name in event)
        and all(second in event for first, second in TOGETHER.items() if first in event)
    )


def read_figures(events: Iterable[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of every figure of the log steps; of repeated steps the last value."""
    series: dict[str, dict[int, float]] = {}
    for event in events:
        for name, value in event.get("figures", {}).items():
            if event["step"] is not None:
                series.setdefault(name, {})[event["step"]] = value
    return {name: curve_of(values) for name, values in series.items()}


def curve_of(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) in the order of the steps."""
    return np.array(sorted(values)), np.array([values[step] for step in sorted(values)])
