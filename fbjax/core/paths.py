"""Paths of data and runs: local ones as `pathlib.Path`, gs:// and s3:// as `etils.epath.Path`, as in TFDS."""

import contextlib
import glob
import io
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath
from filelock import FileLock

BUFFER_SIZE = 2**20  # bytes in one request to a store


def is_remote(path: str | Path) -> bool:
    return re.match(r"[a-z][a-z0-9]*://", str(path)) is not None


def as_path(path: str | Path) -> Path:
    """A local path, or one of etils with the same methods."""
    return epath.Path(path) if is_remote(path) else Path(path)  # pyright: ignore[reportReturnType]


def find(pattern: str | Path) -> list[Path]:
    """The files that match a path or glob, sorted."""
    path = as_path(pattern)
    if path.is_file():
        return [path]
    names = path.parent.glob(path.name) if is_remote(path) else glob.glob(str(pattern))
    return [as_path(name) for name in sorted(map(str, names))]


def size_and_time(file: Path) -> tuple[int, int]:
    """Bytes, and the time of the last change in nanoseconds; of a local folder those of all in it, and the latest."""
    if is_remote(file):
        stored = epath.Path(file).stat()
        return stored.length, stored.mtime * 10**9
    if file.is_dir():
        stats = [path.stat() for path in (file, *file.rglob("*"))]
        return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def open_binary(file: str | Path) -> BinaryIO:
    """Opens a file for reading, with `seek`."""
    return io.BufferedReader(_Stored(epath.Path(file)), BUFFER_SIZE) if is_remote(file) else open(file, "rb")


def lock(path: Path) -> contextlib.AbstractContextManager:
    """A lock between processes; a store has none, so two processes may do the same work there."""
    return contextlib.nullcontext() if is_remote(path) else FileLock(path)


def can_be_made(folder: Path) -> bool:
    """Whether a local folder is there, or this user may make it."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return folder.is_dir() or above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def remove_tree(folder: Path) -> None:
    """Removes a folder if it exists."""
    epath.Path(folder).rmtree(missing_ok=True)


def upload(file: Path, path: str | Path) -> None:
    """Copies a local file to `path`."""
    epath.Path(file).copy(path)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A local file to write; it replaces `path` at the end of the block, unless the block fails or is killed."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)
        return
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial{path.suffix}")  # each writer its own
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def reserve(path: Path, what: str) -> None:
    """Claims the space of a local file at once: on a full disk a write to mapped memory kills the process.

    Raises OSError, with `what` the file was to hold, where there is no room; the file is then deleted.
    """
    size = path.stat().st_size
    try:
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise OSError(
            error.errno, f"no room for {size / 2**30:.2f} GiB of {what} in {path.parent}: {error.strerror}"
        ) from None


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """`path` as a local file: itself, or a copy that exists until the end of the block."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(epath.Path(path).copy(Path(folder) / path.name))


def append(path: Path, text: str) -> None:
    """Appends to a file; the text survives a kill of the process. A store rewrites the whole file. Raises OSError."""
    try:
        with path.open("a") as stream:
            stream.write(text)
    except Exception as error:  # a store's client raises its own types
        raise OSError(f"cannot append to {path}: {error}") from error


class _Stored(io.RawIOBase):
    """A stored file as a Python stream: etils' streams have no `readinto` and open only as a context."""

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


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("FILE line 3", text) of each line of a text file that is not blank, numbered from 1. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: give another file, or save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path} line {number}", line
