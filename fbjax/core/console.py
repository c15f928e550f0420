"""Results on stdout; messages, errors and progress on stderr: a progress bar on a terminal, plain lines elsewhere.

All text of a user's data passes here on its way to a terminal, which would obey the control characters in it.
"""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from tqdm import tqdm

LINE_EVERY = 20.0  # seconds between plain lines
OBEYED = re.compile(  # C0 but for tab and newline, DEL, C1, separators of lines, and embedding or override of direction
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_silent = False


def silence() -> None:
    """Suppresses all messages from now on: in a run of many processes only the first one prints."""
    global _silent
    _silent = True


def open_streams() -> None:
    """Makes stdout and stderr take any text: the null device where one is closed, escapes where a letter is unknown."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file to open would take the number
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or open(1, "w"), sys.stderr or open(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    r"""`text` with characters that a terminal obeys as escapes such as ``\x1b``."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def answer(text: str) -> None:
    """Prints a line of a result on stdout."""
    _write(print, text, sys.stdout)


def say(message: str) -> None:
    """Prints a message on stderr without breaking a progress bar."""
    if not _silent:
        _write(tqdm.write, message, sys.stderr)


def complain(error: object) -> None:
    """Prints an error on stderr, also of a process that is silent."""
    _write(tqdm.write, "fbjax: " + re.sub(r"^\[Errno \d+\] ", "", str(error)), sys.stderr)


def _write(write: Callable, text: str, stream: TextIO) -> None:
    """Writes at once. Where nobody reads any more, as after ``| head``, the process ends as by SIGPIPE, quietly."""
    try:
        write(visible(text), file=stream)
        stream.flush()
    except OSError as error:
        _discard(stream)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise OSError(error.errno, f"cannot write to {stream.name}: {error.strerror}") from None


def _discard(stream: TextIO) -> None:
    """Sends what `stream` still holds to the null device: Python writes it out at exit, and would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


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
