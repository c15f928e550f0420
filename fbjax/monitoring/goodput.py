"""Splits a run's wall time by cause, from the events of `fbjax.monitoring.telemetry`.

The **wall time** of a run is the sum over its attempts. An attempt is a process that trained in the workdir, from the
start of its command to its last event. Every second has one cause:

* ``step``: work on a step that counted. **Goodput** is its share of the wall time. A step counts unless a later attempt
  starts at an earlier checkpoint.
* ``lost work``: work on the other steps. Compiling, saving and waiting for input keep their own cause.
* ``start-up``: from the command's start to the first step, without other causes: imports, the vocabulary, restoring or
  initialising the state, the first batch.
* ``records``, ``patch features``, ``mining``: making or opening them.
* ``compile``: compiling the step. Compiling the validation's scorer belongs to the first evaluation.
* ``input``: the device waited for a batch.
* ``checkpoint``: the loop waited for a checkpoint; writing in the background costs nothing.
* ``evaluation``: validation between steps.

The wall time excludes the time **down** between an attempt's last event and the next attempt's start. This includes the
time from a killed process's last event to its end (at most `telemetry.HEARTBEAT_SECONDS`). Attempts that find the run
finished are left out.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

STEP, LOST, START_UP, COMPILE, INPUT = "step", "lost work", "start-up", "compile", "input"
CHECKPOINT, EVALUATION = "checkpoint", "evaluation"


@dataclass
class Attempt:
    """One process that trained: `seconds` by cause, its first and last step (None: it never reached the loop).

    `ended` is "done" or the exception's name, and "" after a kill.
    """

    began: float  # Unix time
    first: int | None = None
    last: int | None = None
    num_steps: int | None = None
    ended: str = ""
    seconds: Counter = field(default_factory=Counter)

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Split:
    """A run's attempts, and the seconds between them."""

    attempts: list[Attempt]
    down: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause over all attempts; their sum is the wall time."""
        return dict(sum((attempt.seconds for attempt in self.attempts), Counter()))

    @property
    def wall(self) -> float:
        return sum(attempt.wall for attempt in self.attempts)

    @property
    def goodput(self) -> float | None:
        """Share of the wall time for steps that counted; None without wall time."""
        return self.seconds.get(STEP, 0.0) / self.wall if self.wall else None


class _Work(NamedTuple):
    """Seconds of an attempt on the steps after `first` up to `last`; `first` equals `last` if no step ended."""

    attempt: Attempt
    first: int
    last: int
    seconds: float

    def lost_from(self, step: int) -> float:
        """The seconds on steps after `step`, if all steps take equally long."""
        if self.first >= step:
            return self.seconds
        return self.seconds * max(0, self.last - step) / max(1, self.last - self.first)


def split(events: Iterable[dict]) -> Split:
    """The split of a run's events in their order, those of `telemetry.read_events`. Ignores other kinds of events.

    Where two processes wrote at once, an event counts for the attempt that began last.
    """
    attempts, counted = [], []
    for event in events:
        if "began" in event:
            attempts.append(Attempt(event["began"]))
        elif not attempts:
            continue  # a full disk prevented the first event
        now = attempts[-1]
        if "from" in event:
            now.first = now.last = event["from"]
            now.num_steps = event["of"]
            counted = _lose(counted, event["from"]) if event["from"] < event["of"] else counted
        if "spent" in event:
            now.seconds.update(event["spent"])
            if now.last is not None and event["step"] is not None:
                if spent := event["spent"].get(STEP):
                    counted.append(_Work(now, now.last, event["step"], spent))
                now.last = event["step"]
        now.ended = event.get("ended", now.ended)
    attempts = [attempt for attempt in attempts if attempt.first is None or attempt.first < attempt.num_steps]
    ends = (after.began - before.began - before.wall for before, after in zip(attempts, attempts[1:], strict=False))
    return Split(attempts, sum(max(0.0, seconds) for seconds in ends))


def _lose(counted: list[_Work], step: int) -> list[_Work]:
    """The work that still counts after an attempt starts at `step`; moves the rest to lost work."""
    kept = []
    for work in counted:
        lost = work.lost_from(step)
        work.attempt.seconds.update({STEP: -lost, LOST: lost})
        if lost < work.seconds:
            kept.append(work._replace(last=min(work.last, step), seconds=work.seconds - lost))
    return kept
