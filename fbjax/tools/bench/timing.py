"""Times candidates in turn, so that a slow phase of the machine slows all of them. A candidate is any function."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from fbjax.monitoring.hardware import matmul_flops

WARM_UP = 2  # rounds
PAUSE = 0.05  # seconds


@dataclass(frozen=True)
class Times:
    """Seconds of each candidate, one entry a round; entry i of all of them comes from the same round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio_entry(self, key: str, name: str, base: str, factor: float = 1.0) -> dict:
        """``{key: r, key.range: [min, max]}``, r the median of ``factor * seconds(name) / seconds(base)``."""
        ratios = [factor * a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]
        return {key: statistics.median(ratios), f"{key}.range": [min(ratios), max(ratios)]}

    def mixed(self, name: str, shares: Mapping[str, float]) -> "Times":
        """These times and `name`: in each round, the sum of other candidates' seconds times their shares."""
        rounds = zip(*(self.seconds[part] for part in shares), strict=True)
        sums = [sum(share * s for share, s in zip(shares.values(), parts, strict=True)) for parts in rounds]
        return Times({**self.seconds, name: sums})


def take_turns(candidates: Mapping[str, Callable[[], Any]], repeats: int, on_round: Callable[[int], None]) -> Times:
    """Every round runs each candidate once; each returns when its work is done. The first rounds only warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(1 - WARM_UP, repeats + 1):
        for name, run in candidates.items():
            # idle worker threads spin for a while: those of one library would slow the next one
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
        on_round(turn)
    return Times(seconds)


def peak_share(times: Times, name: str, flops: float | None, peak: str = "matmul") -> dict:
    """FLOP/s of `name`, which needs `flops`, over those of candidate `peak`, a matrix product on one device."""
    if flops is None:
        return {"peak_share": None, "peak_share.range": None}
    return times.ratio_entry("peak_share", peak, name, flops / (matmul_flops() * jax.device_count()))
