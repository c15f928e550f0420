"""Messages and progress on stderr: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

LINE_EVERY = 20.0  # seconds between plain lines
_silent = False


def silence() -> None:
    """Suppresses all messages from now on: in a run of many processes only the first one prints."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Prints a line without breaking a progress bar."""
    if _silent:
        return
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def progress(items: Iterable, total: int | None, label: str) -> Iterator:
    """`items` unchanged; shows their rate and the remaining time."""
    if sys.stderr.isatty() and not _silent:
        yield from tqdm(items, total=total, desc=label, file=sys.stderr, dynamic_ncols=True)
        return
    start = last = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if now - last > LINE_EVERY:
            last, rate = now, done / (now - start)
            left = f" of {total}, {duration((total - done) / rate)} left" if total and rate else ""
            say(f"{label}: {done}{left} ({rate:.0f}/s)")
        yield item


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min``, ``40 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{seconds:.0f} s"
