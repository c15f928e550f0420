"""Where data and runs lie: folders of this machine, or gs:// and s3:// as TFDS reaches them (etils.epath).

What lies here stays with Python's own paths and files. Knows nothing of tables or records.
"""

import contextlib
import glob
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath
from filelock import FileLock

AT_ONCE = 2**20  # bytes asked of a store


def is_remote(path: str | Path) -> bool:
    return re.match(r"[a-z][a-z0-9]*://", str(path)) is not None


def as_path(path: str | Path) -> Path:
    """A path of this machine, or one of etils with the same methods."""
    return epath.Path(path) if is_remote(path) else Path(path)


def find(pattern: str | Path) -> list[Path]:
    """The files that a path or glob names, sorted."""
    path = as_path(pattern)
    if path.is_file():
        return [path]
    names = path.parent.glob(path.name) if is_remote(path) else glob.glob(str(pattern))
    return [as_path(name) for name in sorted(map(str, names))]


def size_and_time(file: Path) -> tuple[int, int]:
    """Bytes, and when it was changed, in nanoseconds."""
    stat = file.stat()
    if is_remote(file):
        return stat.length, stat.mtime * 10**9
    return stat.st_size, stat.st_mtime_ns


def open_binary(file: str | Path) -> BinaryIO:
    """To be read, from any place in it."""
    return io.BufferedReader(_Stored(epath.Path(file)), AT_ONCE) if is_remote(file) else open(file, "rb")


def lock(path: Path) -> contextlib.AbstractContextManager:
    """Held by one process at a time; a store has no locks, and there two may do the same work."""
    return contextlib.nullcontext() if is_remote(path) else FileLock(path)


def remove_tree(folder: Path) -> None:
    """Removes a folder, if it is there."""
    epath.Path(folder).rmtree(missing_ok=True)


def upload(file: Path, path: str | Path) -> None:
    """Copies a file of this machine."""
    epath.Path(file).copy(path)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file of this machine to write, which becomes `path` when the block ends well: a kill leaves what was there."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)
        return
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """`path` as a file of this machine: itself, or a copy for as long as the block lasts."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(path.copy(Path(folder) / path.name))


def append(path: Path, text: str) -> None:
    """Adds to a file, no later than that it is the kernel's, which a kill of the process spares; a store writes the
    whole file anew. Raises OSError."""
    try:
        with path.open("a") as stream:
            stream.write(text)
    except Exception as error:  # a store's client has its own kinds
        raise OSError(f"cannot write {path}: {error}") from error


class _Stored(io.RawIOBase):
    """A file in a store as Python's: etils' has no `readinto`, and is open only as a context."""

    def __init__(self, path: epath.Path):
        self._context = path.open("rb")
        self._stream = self._context.__enter__()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        found = self._stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._stream.seek(offset, whence)
        return self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._context.__exit__(None, None, None)
        super().close()
