"""Where a run's wall time went, from the events of `fbjax.monitoring.telemetry`. Pure: knows no file and no clock.

The **wall time** of a run is that of its attempts, the processes that trained in its workdir, each from the start of
its command to the last event it wrote. Every second of it has one cause:

* ``step``: the device worked, or the host between two steps, on a step that counted: **goodput** is this over the wall
  time. A step counts, done or under way, until a later attempt begins at a checkpoint before it.
* ``lost work``: the same, on steps that a later attempt began before. What lay between is no lost work: compiling,
  saving or waiting for input keep their cause whatever became of the steps.
* ``start-up``: from the command's start to the first step, less what has a cause of its own: imports, the vocabulary,
  restoring or initialising the state, the first batch.
* ``records``, ``patch features``, ``mining``: made for the first time, or opened where they are there.
* ``compile``: the step's programs. That of the validation's scorer is part of the first evaluation.
* ``input``: the device had nothing to do because a batch was not there.
* ``checkpoint``: the loop stood still for a checkpoint; the part that is written in the background costs nothing.
* ``evaluation``: validation between steps.

Not of the wall time: what passed **down**, between one attempt's last event and the next one's start; the seconds
between a killed process's last event and its end (`telemetry.HEARTBEAT_SECONDS` at most), which stand under down; and
attempts that found the run finished.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

STEP, LOST, START_UP, COMPILE, INPUT = "step", "lost work", "start-up", "compile", "input"
CHECKPOINT, EVALUATION = "checkpoint", "evaluation"


@dataclass
class Attempt:
    """One process that trained: `seconds` by cause, and the steps it led from and to (None: it never got to the loop).

    `ended` is how by its own words, "" where it had no time for any.
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
        """By cause, over all attempts; they sum to the wall time."""
        return dict(sum((attempt.seconds for attempt in self.attempts), Counter()))

    @property
    def wall(self) -> float:
        return sum(attempt.wall for attempt in self.attempts)

    @property
    def goodput(self) -> float | None:
        """Share of the wall time spent on steps that counted; None of no time at all."""
        return self.seconds.get(STEP, 0.0) / self.wall if self.wall else None


class _Work(NamedTuple):
    """Seconds that an attempt spent on the steps after `first`, up to `last`; alike where none of them ended."""

    attempt: Attempt
    first: int
    last: int
    seconds: float

    def lost_from(self, step: int) -> float:
        """Its seconds that went to steps after `step`, taken to be equally long."""
        if self.first >= step:
            return self.seconds
        return self.seconds * max(0, self.last - step) / max(1, self.last - self.first)


def split(events: Iterable[dict]) -> Split:
    """The split of a run's events, in the order in which they were written. Events of other kinds are passed over."""
    attempts, counted = [], []
    for event in events:
        if "began" in event:
            attempts.append(Attempt(event["began"]))
        elif not attempts:
            continue  # its beginning was never written: the disk was full
        now = attempts[-1]
        if "from" in event:
            now.first = now.last = event["from"]
            now.num_steps = event["of"]
            counted = _lose(counted, event["from"]) if event["from"] < event["of"] else counted
        if "spent" in event:
            now.seconds.update(event["spent"])
            if spent := event["spent"].get(STEP):
                counted.append(_Work(now, now.last, event["step"], spent))
            now.last = event["step"] if now.last is not None else None
        now.ended = event.get("ended", now.ended)
    attempts = [attempt for attempt in attempts if attempt.first is None or attempt.first < attempt.num_steps]
    ends = (after.began - before.began - before.wall for before, after in zip(attempts, attempts[1:], strict=False))
    return Split(attempts, sum(max(0.0, seconds) for seconds in ends))


def _lose(counted: list[_Work], step: int) -> list[_Work]:
    """What still counts of work done once an attempt begins at `step`; the rest moves to its attempts' lost work."""
    kept = []
    for work in counted:
        lost = work.lost_from(step)
        work.attempt.seconds.update({STEP: -lost, LOST: lost})
        if lost < work.seconds:
            kept.append(work._replace(last=min(work.last, step), seconds=work.seconds - lost))
    return kept
