"""Times candidates in turn, in runs: so many launches one after another, and one wait for all of them.

A slow phase of the machine slows all candidates, since every round runs each of them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RUN_SECONDS = 0.5  # of a run, at least
MOST_LAUNCHES = 200  # of a run
PERCENTILES = (50, 95, 99)


class Run(NamedTuple):
    """Seconds of one launch, and how many of those the host takes to make it while the device is idle."""

    seconds: float
    host: float
    each: tuple[float, ...] = ()  # of every launch, for the host: the whole launch where it waits itself


def timed(launch: Callable[[], Any], wait: Callable[[], Any], count: int) -> Run:
    """A run of `count` launches."""
    stamps = [time.perf_counter()]
    for _ in range(count):
        launch()
        stamps.append(time.perf_counter())
    wait()
    each = tuple(np.diff(stamps).tolist())
    # of the first: later ones may wait for room in the device's queue
    return Run((time.perf_counter() - stamps[0]) / count, each[0], each)


def launches(seconds: float) -> int:
    """The launches of a run, where one takes `seconds`."""
    return max(1, min(MOST_LAUNCHES, round(RUN_SECONDS / max(seconds, 1e-9))))


@dataclass(frozen=True)
class Times:
    """The runs of each candidate, one a round; entry i of all of them comes from the same round."""

    runs: Mapping[str, list[Run]]

    def __contains__(self, name: str) -> bool:
        return bool(self.runs.get(name))

    def seconds(self, name: str) -> list[float]:
        return [run.seconds for run in self.runs[name]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds(name))

    def rate_entry(self, key: str, name: str, amount: float) -> dict:
        """``{key: r, key.range: [min, max]}``: `amount` a second."""
        return _entry(key, [amount / seconds for seconds in self.seconds(name)])

    def ratio_entry(self, key: str, name: str, base: str, factor: float = 1.0) -> dict:
        """``{key: r, key.range: [min, max]}``, r the median of ``factor * seconds(name) / seconds(base)``; null where
        either was not timed."""
        if name not in self or base not in self:
            return {key: None, f"{key}.range": None}
        return _entry(key, [factor * a / b for a, b in zip(self.seconds(name), self.seconds(base), strict=True)])

    def percentiles(self, name: str) -> dict:
        """Of single launches over all rounds, in milliseconds, and their number: for launches that wait themselves."""
        each = [1e3 * seconds for run in self.runs[name] for seconds in run.each]
        found = np.percentile(each, PERCENTILES).tolist()
        return {"requests": len(each)} | {f"p{p}": value for p, value in zip(PERCENTILES, found, strict=True)}

    def host_share(self, name: str) -> float:
        """The host's part of a launch: near 1, the device waits for the host."""
        return statistics.median(min(1.0, run.host / run.seconds) for run in self.runs[name])

    def mixed(self, name: str, shares: Mapping[str, float]) -> "Times":
        """These times and `name`: in each round, the sum of other candidates' times their shares."""
        if not all(part in self for part in shares):
            return self
        rounds = zip(*(self.runs[part] for part in shares), strict=True)
        sums = [Run(*(np.array([part[:2] for part in parts]).T @ list(shares.values())).tolist()) for parts in rounds]
        return Times({**self.runs, name: sums})


def _entry(key: str, values: list[float]) -> dict:
    return {key: statistics.median(values), f"{key}.range": [min(values), max(values)]}
