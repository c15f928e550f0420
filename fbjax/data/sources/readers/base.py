"""What every reader offers: the columns of a table, and its rows as cells. It knows no meaning of a column."""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from fbjax.core import paths

SURPLUS = "more cells than the header"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a user says of text tables."""

    encoding: str = ""  # "": found out
    rest: str = ""  # the column that takes the cells of a row that the header lacks; "": such a row is malformed


@dataclasses.dataclass(frozen=True)
class Table(abc.ABC):
    """A file of rows, or a folder that is read as one.

    A row is a dict of cells; a malformed row is a string with the reason. Reading raises ValueError with the remedy
    where the file is damaged.
    """

    path: Path
    reading: Reading = Reading()

    @abc.abstractmethod
    def columns(self) -> list[str]:
        """The column names without surrounding spaces; numbers repeated names and names empty ones by position."""

    @abc.abstractmethod
    def rows(self, names: set[str] | None = None) -> Iterator[dict | str]:
        """All rows. Binary formats give only the columns `names` (None: all)."""

    @abc.abstractmethod
    def about(self) -> tuple[str, list[str]]:
        """The format in words, and warnings: what the reader guessed or does not read."""

    @property
    def folder(self) -> Path:
        """What the paths in the cells are relative to."""
        return self.path.parent

    def binary(self) -> set[str]:
        """Columns with bytes, alone or in structs or lists: mostly embedded images."""
        return set()

    def blocks(self) -> list[int]:
        """The rows of each stretch that can be read without the others; [] for a file that is read from its start."""
        return []

    def read_block(self, block: int, names: set[str]) -> Iterator[dict]:
        """The rows of one of `blocks`, as from `rows`."""
        raise NotImplementedError(f"{self.path} has no blocks")

    def block_bytes(self, block: int) -> int:
        """The bytes of a block, about."""
        return 0

    def count(self) -> int | None:
        """The number of rows, or None if it is unknown before reading."""
        return sum(self.blocks()) if self.blocks() else None


def first_columns(rows: Iterator[dict | str]) -> list[str]:
    """The names in the first rows of a format without a header."""
    first = itertools.islice((row for row in rows if isinstance(row, dict)), 100)
    return list(dict.fromkeys(name for row in first for name in row))


def unique_names(names: list[str]) -> list[str]:
    """Column names on one line, each once: "title.2" is the second "title", "column 4" has no name."""
    unique = []
    for place, name in enumerate(names, start=1):
        name = " ".join(name.replace("\0", "").strip("\ufeff").split()) or f"column {place}"
        repeats = itertools.count(2)
        unique.append(name if name not in unique else next(n for i in repeats if (n := f"{name}.{i}") not in unique))
    return unique


def listed(names: list[str]) -> str:
    """Column names for a message, at most 40."""
    shown = [name if len(name) <= 60 and name.isprintable() else ascii(name[:60])[1:-1] + ".." for name in names[:40]]
    return ", ".join(shown) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def once_per_version(function):
    """Caches a function of a file, and of further arguments, until the file changes."""

    @functools.lru_cache(maxsize=256)
    def cached(file, version, *arguments):
        return function(file, *arguments)

    @functools.wraps(function)
    def wrapper(file: Path, *arguments):
        return cached(file, paths.size_and_time(file), *arguments)

    return wrapper
