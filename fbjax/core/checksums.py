"""Checksums of files that a later command reads: SHA-256 of a folder's files, CRC-32 of a large array's blocks.

A folder's lie in ``SHA256SUMS`` beside its files, in the form that ``sha256sum -c`` reads. They find damage, not
forgery.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fbjax.core.paths import as_path, atomic_write, is_remote, open_binary

SUMS = "SHA256SUMS"
BLOCK = 2**26  # bytes of an array that one CRC covers


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Notes the present content of the files `names` in `folder` (default: all of a local folder)."""
    names = _all_files(folder) if names is None else sorted(names)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    with atomic_write(folder / SUMS) as file:
        file.write_text("".join(lines), encoding="utf-8")


def damage(folder: Path, names: Iterable[str] | None = None) -> str:
    """What is wrong with the noted files of `folder`, or those of them in `names`; "" if all are as they were written.

    A folder without `SUMS` has nothing noted: ask `has_sums`.
    """
    if not has_sums(folder):
        return ""
    text = (folder / SUMS).read_bytes().decode("utf-8", "replace")
    pairs = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    noted = {name: digest for digest, name in pairs}
    for name in noted.keys() if names is None else noted.keys() & set(names):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != noted[name]:
            return f"{name} is not as it was written"
    return "" if noted else f"{SUMS} is cut"


def has_sums(folder: Path) -> bool:
    return (as_path(folder) / SUMS).is_file()


def sha256(path: Path) -> str:
    with open_binary(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def summed_write(path: Path) -> Iterator[Path]:
    """As `paths.atomic_write`; a local file's content is noted in ``FILE.crc32``, of which `blocks_damage` tells."""
    with atomic_write(path) as file:
        yield file
        note_blocks(path, file)


def note_blocks(path: Path, file: Path) -> None:
    """Notes the content of `file`, which is about to become `path`, a number a block; a store has its own checksums."""
    if not is_remote(path):
        with atomic_write(_blocks_file(path)) as note:
            note.write_text(json.dumps(block_sums(file)))


def blocks_damage(path: Path) -> str:
    """What is wrong with the file `path`, "" if it is as it was noted, or never was. Reads all of it, on all cores."""
    noted = _blocks_file(path)
    if is_remote(path) or not noted.is_file():
        return ""
    same = noted.read_text(errors="replace") == json.dumps(block_sums(path))
    return "" if same else f"{path} is not as it was written"


def _blocks_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.crc32")


def block_sums(path: Path) -> list[int]:
    """The CRC-32 of each block of a local file."""

    def of(start: int) -> int:
        with open(path, "rb") as stream:
            stream.seek(start)
            return zlib.crc32(stream.read(BLOCK))

    with ThreadPoolExecutor() as threads:
        return list(threads.map(of, range(0, path.stat().st_size, BLOCK)))


def _all_files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    return sorted(path.relative_to(folder).as_posix() for path in files)
