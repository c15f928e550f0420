"""Vectors on their way to a file: a hidden folder beside it, ``.NAME.unfinished``, which a later command goes on with.

It holds ``vectors/``, in the form of a finished folder of `vector_files`, of full size from the start; ``done``, the
number of products whose vectors are on the disk; and the lock of the command at work.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from fbjax.core.paths import atomic_write, reserve
from fbjax.inference.catalogue.vector_files import array_file, open_folder, read_manifest, write_file, write_index

FLUSH_SECONDS = 20  # at most so much, or a few batches, is done again after a kill
VECTORS, DONE, LOCK = "vectors", "done", "lock"


class Unfinished:
    """Vectors of the products of one output; `done` counts those that are there, in the order of their computation."""

    def __init__(self, home: Path, done: int):
        self._home, self._vectors, self.done = home, open_folder(home / VECTORS, "r+"), done
        self._flushed = time.monotonic()

    def add(self, rows: np.ndarray, found: dict[str, np.ndarray]) -> None:
        """Keeps the vectors [n, E] of each unit as those of the products `rows`, the next in the order."""
        for unit, vectors in found.items():
            self._vectors[unit][rows] = vectors
        self.done += len(rows)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Notes what is done once it is on the disk."""
        for vectors in self._vectors.values():
            vectors.flush()
        with atomic_write(self._home / DONE) as file:
            file.write_text(str(self.done))
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._vectors = {}

    def finish(self, out: Path) -> None:
        """Moves all vectors to `out` in one rename."""
        self.flush()
        made = self._home / VECTORS
        if out.suffix:
            made = self._home / out.name
            write_file(made, self._home / VECTORS)
        made.replace(out)
        shutil.rmtree(self._home)


@contextlib.contextmanager
def unfinished(out: Path, manifest: dict, ids: np.ndarray, units: Sequence[str], size: int) -> Iterator[Unfinished]:
    """The work on `out` for the block: what an earlier command with the same `manifest` has left, or new.

    `ids` [N], vectors of `size` numbers. Raises ValueError where another command is at work, OSError with the remedy
    where the disk has no room. After an error or a kill in the block what is done stays.
    """
    home = out.absolute().with_name(f".{out.name}.unfinished")
    with _full_disk_explained(out):
        home.mkdir(exist_ok=True)
        with _held(home, out):
            if read_manifest(home / VECTORS) != manifest:
                _begin(home, manifest, ids, units, size)
            work = Unfinished(home, _read_count(home / DONE))
            try:
                yield work
            except BaseException:
                with contextlib.suppress(OSError):  # the error in hand says more
                    work.flush()
                raise
            finally:
                work.close()


@contextlib.contextmanager
def _held(home: Path, out: Path) -> Iterator[None]:
    lock = FileLock(home / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another command writes {out}: wait for its end, or give another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _full_disk_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remedy = "free some and run the same command again, it goes on where it was"
        raise OSError(errno.ENOSPC, f"no space left for {out} ({error}): {remedy}") from None


def _begin(home: Path, manifest: dict, ids: np.ndarray, units: Sequence[str], size: int) -> None:
    """Empty vectors, for which the room is claimed. The index comes last: after a kill before it work begins anew."""
    shutil.rmtree(home / VECTORS, ignore_errors=True)
    (home / DONE).unlink(missing_ok=True)
    (home / VECTORS).mkdir()
    try:
        for unit in units:
            path = array_file(home / VECTORS, unit)
            np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), size)).flush()
            reserve(path, f"{unit} vectors")
        write_index(home / VECTORS, manifest, ids)
    except OSError:
        shutil.rmtree(home)
        raise


def _read_count(path: Path) -> int:
    text = path.read_text() if path.is_file() else ""
    return int(text) if text.isdigit() else 0
