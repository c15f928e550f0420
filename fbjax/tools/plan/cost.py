"""The cost model of a step: a roofline for each chip, and rings for the collectives.

    busy   = max(FLOPs / peak, traffic / HBM bandwidth)
    ring   = max((n - 1) / n V / W, h t)            all-gather and reduce-scatter of V bytes over n chips
    step   = busy + sum of collectives,             nothing overlapped
             max(busy, sum of collectives),         everything overlapped

W is the sum over the slice's axes that the group spans: two links of bandwidth w where the axis closes to a ring, one
elsewhere, since the last chip then receives everything through one link. h is the number of hops, half of a ring's
chips or all but one of a line's, at t = 1 microsecond each. An all-reduce is a reduce-scatter and an all-gather. An
all-to-all moves a quarter of an all-gather's bytes along the longest axis. A permute takes one hop. ("How to Scale Your
Model", part 3.)

Chips compute at peak speed, so that times are lower bounds. Computation is then too short relative to communication,
and the scaling efficiency without overlap is a lower bound too. The model leaves out input, stragglers, launches and
the network between slices.
"""

import dataclasses
import math
from collections.abc import Iterable

from fbjax.monitoring.hardware import Chip
from fbjax.tools.plan.topology import rings

HOP_SECONDS = 1e-6  # "typically around 1us" (scaling book, part 3)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step on every chip."""

    compute: float
    memory: float
    collectives: float

    @property
    def busy(self) -> float:
        return max(self.compute, self.memory)

    @property
    def apart(self) -> float:
        """Nothing overlapped."""
        return self.busy + self.collectives

    @property
    def overlapped(self) -> float:
        return max(self.busy, self.collectives)


@dataclasses.dataclass(frozen=True)
class Span:
    """A collective's group in a slice: chips along each axis, and whether those close to a ring."""

    sizes: tuple[int, ...]
    rings: tuple[bool, ...]

    @classmethod
    def within(cls, chip: Chip, shape: tuple[int, ...], spanned: tuple[int, ...]) -> "Span":
        """A group of `spanned` chips along the axes of a slice; a part of a ring is not a ring."""
        closed = zip(rings(chip, shape), shape, spanned, strict=True)
        axes = [(size, ring and size == whole) for ring, whole, size in closed if size > 1]
        return cls(*zip(*axes, strict=True)) if axes else cls((), ())

    @property
    def hops(self) -> int:
        return sum(size // 2 if ring else size - 1 for size, ring in zip(self.sizes, self.rings, strict=True))

    def bandwidth(self, chip: Chip) -> float:
        return sum(chip.link_bandwidth * (1 + ring) for ring in self.rings)


def collective_seconds(kind: str, size: int, span: Span, chip: Chip) -> float:
    """Seconds of one collective of `size` bytes: the whole array, but one chip's part of an all-to-all or permute."""
    if not span.sizes:
        return 0.0
    if kind == "collective-permute":
        return max(size / chip.link_bandwidth, HOP_SECONDS)
    n, latency = math.prod(span.sizes), span.hops * HOP_SECONDS
    if kind == "all-to-all":
        axes = zip(span.sizes, span.rings, strict=True)
        return max(latency, *(length * size / 4 / (chip.link_bandwidth * (1 + ring)) for length, ring in axes))
    ring = max((n - 1) / n * size / span.bandwidth(chip), latency)
    return 2 * ring if kind == "all-reduce" else ring


def step_time(flops: float, traffic: float, collectives: Iterable[tuple[str, int, Span, int]], chip: Chip) -> StepTime:
    """A chip's `flops` and bytes of `traffic`; collectives as (kind, size, span, times)."""
    waiting = sum(times * collective_seconds(kind, size, span, chip) for kind, size, span, times in collectives)
    return StepTime(flops / chip.bf16_flops, traffic / chip.hbm_bandwidth, waiting)
