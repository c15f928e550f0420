"""The clock of a run: what its time is spent on, kept in the workdir so that a kill loses the last seconds at most.

One file, ``telemetry.jsonl``, an event a line, only ever appended to. `fbjax.monitoring.goodput` reckons it up.

* ``{"began": Unix time}``: a process began to train.
* ``{"from": step, "of": steps, "machine": .., "peak": {..}}``: it enters the loop at that step.
* ``{"at": Unix time, "spent": {cause: seconds}, "step": s}``: what the time since the line before went to; s steps are
  done for certain. At log steps also ``"figures"``, which `fbjax.monitoring.logger` names.
* ``{"ended": how}``: it ended by itself.
* ``{"noted": stage, "seconds": ..}``: what another command on this run took.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fbjax.core.paths import append, as_path, is_remote
from fbjax.monitoring.goodput import START_UP, STEP, split

FILE = "telemetry.jsonl"
HEARTBEAT_SECONDS, REMOTE_HEARTBEAT_SECONDS = 5.0, 60.0  # seconds after which a line is written, whatever the run is at


class Telemetry:
    """Accounts for every second since `begun` (Unix time; default: now), as a context manager until it is left.

    Every process of a run keeps time, the one that `writes` keeps the file. A full disk costs lines, not the run: what
    they would have said goes into the next.
    """

    def __init__(self, workdir: str | Path, begun: float | None = None, writes: bool = True):
        now = time.time()
        self._begun = now if begun is None else begun
        self._zero = time.perf_counter() - (now - self._begun)  # nobody sets this clock while the process runs
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
        """Puts the time of a block down to `cause`, or to what `cause()` says at its end, and at every
        `HEARTBEAT_SECONDS` in it."""
        self._account()
        self._doing.append(cause)
        try:
            yield
        finally:
            self._account()
            self._doing.pop()

    def enter_loop(self, step: int, num_steps: int, **about) -> None:
        """The state is that of `step`: what earlier attempts did of the steps after it is lost."""
        event = {"from": step, "of": num_steps} | about
        before = split([*self._earlier, {"began": self._begun}, event])
        self._counted_before, self._wall_before = before.seconds.get(STEP, 0.0), before.wall
        self._mark()
        self._step = step
        self._write(event)

    def stepping(self) -> None:
        """From now on, time that has no cause is that of steps."""
        self._account()
        self._doing[0] = STEP

    def checkpoint_figures(self, step: int, figures: dict[str, float]) -> None:
        """`step` is done, and that is how fast it went."""
        self._step = step
        self._mark({"figures": {name: float(f"{value:.5g}") for name, value in figures.items()}})

    def seconds(self) -> Counter:
        """This process's seconds up to now, by cause."""
        with self._lock:
            self._account()
            return self._seconds.copy()

    def goodput(self) -> float:
        """Of the run up to now, earlier attempts included."""
        seconds = self.seconds()
        return (self._counted_before + seconds[STEP]) / (self._wall_before + sum(seconds.values()))

    def earlier(self, name: str) -> list:
        """What events of earlier attempts have under `name`."""
        return [event[name] for event in self._earlier if name in event]

    def _account(self) -> None:
        with self._lock:
            now = time.perf_counter() - self._zero
            cause = self._doing[-1]
            cause = cause if isinstance(cause, str) else cause()
            self._seconds[cause] += now - self._accounted
            self._unwritten[cause] += now - self._accounted
            self._accounted = now

    def _mark(self, more: dict | None = None) -> None:
        """Writes a line of what the time since the last one went to; what rounding leaves goes into the next."""
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
    """Notes what another command took; a full disk costs the note, not the command."""
    _append(as_path(workdir) / FILE, {"noted": stage, "seconds": round(seconds, 1)})


def _append(path: Path, event: dict, new_line: bool = False) -> bool:
    """Whether the line could be written."""
    try:
        append(path, "\n" * new_line + json.dumps(event) + "\n")
    except OSError:
        return False
    return True


def read_events(workdir: str | Path) -> list[dict]:
    """All events of a run in the order in which they were written; what a kill or a full disk cut is left out."""
    path, events = as_path(workdir) / FILE, []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            if isinstance(event := json.loads(line), dict):
                events.append(event)
    return events


def read_figures(events: Iterable[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of every figure of the log steps; of steps that were done again, the last ones."""
    series: dict[str, dict[int, float]] = {}
    for event in events:
        for name, value in event.get("figures", {}).items():
            series.setdefault(name, {})[event["step"]] = value
    return {
        name: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in series.items()
    }
