"""Whether a step fits into a chip's memory, and the largest batch that does."""

import re
from collections.abc import Callable

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
VERDICTS = (  # of libtpu: of all that a program holds, or of its temporaries alone where those are too much already
    r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm",
    r"required for HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)",
)


class OutOfMemory(Exception):
    """The compiler's verdict: `used` bytes are needed at least, `capacity` are there."""

    def __init__(self, used: float, capacity: float):
        super().__init__(f"needs {used / 2**30:.2f} GiB a chip, of which {capacity / 2**30:.2f} are there")
        self.used, self.capacity = int(used), int(capacity)


def memory_error(error: Exception) -> OutOfMemory | None:
    """What libtpu means by its verdict, or None where something else went wrong."""
    for verdict in VERDICTS:
        if match := re.search(verdict, str(error)):
            used, used_unit, capacity, unit = match.groups()
            return OutOfMemory(float(used) * UNITS[used_unit], float(capacity) * UNITS[unit])
    return None


def largest(used: Callable[[int], float], capacity: float, too_many: int, needed: float, fixed: float) -> int:
    """The most units n in 1 .. `too_many` - 1 with ``used(n) <= capacity``, or 0; `too_many` units need `needed` bytes.

    Memory is taken to grow evenly from `fixed` bytes at none, which makes the first guess nearly always the answer or
    one beside it; every guess is tried, and so is the next larger one.
    """
    low, high = (0, fixed), (too_many, needed)
    while high[0] - low[0] > 1:
        slope = (high[1] - low[1]) / (high[0] - low[0])
        guess = int(low[0] + (capacity - low[1]) / slope) if slope > 0 else (low[0] + high[0]) // 2
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        tried = (guess, used(guess))
        low, high = (tried, high) if tried[1] <= capacity else (low, tried)
    return low[0]
