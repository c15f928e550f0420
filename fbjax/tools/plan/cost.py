"""The written model of a step's time: a roofline for each chip, and rings for the collectives.

    busy   = max(FLOPs / peak, traffic / HBM bandwidth)
    ring   = max((n - 1) / n V / W, h t)            all-gather and reduce-scatter of V bytes over n chips
    step   = busy + sum of collectives,             nothing overlapped
             max(busy, sum of collectives),         everything overlapped

W adds up over the slice's axes that the group spans: two links of bandwidth w where the axis closes to a ring, one
where it does not, since the last chip then takes everything through one link. h adds up the hops, half an axis or all
but one of it, of t = 1 microsecond. An all-reduce is a reduce-scatter and an all-gather; an all-to-all moves a quarter
of what an all-gather does, along the longest axis; a permute goes one hop. ("How to Scale Your Model", part 3.)

At peak, no chip being ever that fast: times are lower bounds, and as computation is too short next to communication,
so is the scaling efficiency without overlap. What it leaves out: input, stragglers, launching, the network between
slices.
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
    """The part of a slice that a collective's group fills: chips along each axis, and whether those close to a ring."""

    sizes: tuple[int, ...]
    rings: tuple[bool, ...]

    @classmethod
    def within(cls, chip: Chip, shape: tuple[int, ...], spanned: tuple[int, ...]) -> "Span":
        """A group that spans `spanned` chips along the axes of a slice: a part of a ring is none."""
        closed = zip(rings(chip, shape), shape, spanned, strict=True)
        axes = [(size, ring and size == whole) for ring, whole, size in closed if size > 1]
        return cls(*zip(*axes, strict=True)) if axes else cls((), ())

    @property
    def hops(self) -> int:
        return sum(size // 2 if ring else size - 1 for size, ring in zip(self.sizes, self.rings, strict=True))

    def bandwidth(self, chip: Chip) -> float:
        return sum(chip.link_bandwidth * (1 + ring) for ring in self.rings)


def collective_seconds(kind: str, size: int, span: Span, chip: Chip) -> float:
    """The time of one collective of `size` bytes: the whole array; of an all-to-all or a permute a chip's own part."""
    if not span.sizes:
        return 0.0
    n, latency = math.prod(span.sizes), span.hops * HOP_SECONDS
    if kind == "collective-permute":
        return max(size / chip.link_bandwidth, HOP_SECONDS)
    if kind == "all-to-all":
        axes = zip(span.sizes, span.rings, strict=True)
        return max(latency, *(length * size / 4 / (chip.link_bandwidth * (1 + ring)) for length, ring in axes))
    ring = max((n - 1) / n * size / span.bandwidth(chip), latency)
    return 2 * ring if kind == "all-reduce" else ring


def step_time(flops: float, traffic: float, collectives: Iterable[tuple[str, int, Span, int]], chip: Chip) -> StepTime:
    """A chip's `flops` and bytes of `traffic`; collectives as (kind, size, span, times)."""
    return StepTime(
        compute=flops / chip.bf16_flops,
        memory=traffic / chip.hbm_bandwidth,
        collectives=sum(times * collective_seconds(kind, size, span, chip) for kind, size, span, times in collectives),
    )
