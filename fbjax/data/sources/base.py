"""A data source reads files into products, a part of the rows at a time.

A source is one file that registers a subclass of `DataSource` under a name for config.data.source. The file is in this
package, or anywhere that is imported before `open_source`. It checks its rows and knows no records or models.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fbjax.config.data import DataConfig
from fbjax.core import paths
from fbjax.core.checksums import blocks_damage, sha256, summed_write
from fbjax.core.registry import Registry
from fbjax.data.text.wordpiece import Vocabulary

SOURCES: Registry[type["DataSource"]] = Registry("data source", "fbjax.data.sources")
OTHER_SPLIT, DUPLICATE = "group is in another split", "duplicate id"
LOCATIONS = ("train", "validation", "manual_dir", "prepared")  # settings of the data that are paths
HASHES = "tables.json"  # in the prepared folder: hashes of tables, so that none is read twice
READING = ("arrays", "on_device")  # settings of how prepared data is read


@dataclasses.dataclass(frozen=True)
class Product:
    id: str
    text: str
    category: str
    group: str
    image: bytes | np.ndarray  # JPEG or PNG, RGB, upright; or patch features, float16 [P, C]
    where: str  # file and row
    pieces: tuple[list[int], list[int]] | None = None  # the text's pieces and the word of each, if the source has them
    column_ends: tuple[int, ...] = ()  # characters of the text up to each column's end; (): one column, as with pieces
    more_images: tuple[bytes, ...] = ()  # further pictures, as `image`
    left_out: tuple[str, ...] = ()  # why other pictures of the product are not used, which has one that is


@dataclasses.dataclass(frozen=True)
class Skipped:
    where: str  # file and row
    id: str
    reason: str
    group: str = ""  # if known


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive rows that can be read without the rest of `file`; `first` is the number of the first row, from 1."""

    file: Path
    first: int
    rows: Any  # the rows or, for their source, where they are; is sent to workers


Described = tuple[int, Product | Skipped, Callable[[], Product | Skipped]]


@dataclasses.dataclass(frozen=True)
class DataSource(abc.ABC):
    """The products of the train and validation files of `data`, or of `table` alone: a file or glob, or several.

    Images are reduced to the resolution that `image_size` x `image_size` needs. A subclass checks, cuts and reads a
    file; it is sent to Beam's workers.
    """

    data: DataConfig
    image_size: int
    table: str | tuple[str, ...] | None = None

    version: ClassVar[int] = 1  # increase it when the same files give other products
    gives_features: ClassVar[bool] = False  # patch features in place of images, of data.num_patches x data.feature_size

    @abc.abstractmethod
    def check(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError or FileNotFoundError if a file or column is missing."""

    @abc.abstractmethod
    def texts(self) -> Iterator[str]:
        """The texts of the training files, for a vocabulary. Raises ValueError if it cannot have its own."""

    @abc.abstractmethod
    def cut(self, file: Path, vocabulary: Vocabulary) -> Iterator[Part]:
        """The parts of `file`."""

    @abc.abstractmethod
    def described(self, part: Part, vocabulary: Vocabulary, images: bool = True) -> Iterator[Described]:
        """(number, product without image or `Skipped`, function that adds the image) of each row.

        Without `images`, images are not read and the function must not be called.
        """

    def find(self, pattern: str) -> list[Path]:
        """The files of a path or glob, sorted. Raises FileNotFoundError if there is none."""
        if files := paths.find(pattern):
            return files
        raise FileNotFoundError(
            f"no table at {str(pattern)!r}: set config.data.train (or --data) to a file, a folder or a glob"
        )

    def count(self, files: list[Path]) -> int | None:
        """The number of rows, or None if it is unknown before reading."""
        return None

    def about(self, file: Path) -> str:
        """A hint for the error about a file without usable rows."""
        return ""

    def notes(self) -> list[str]:
        """What reading guessed or leaves out, a line each, for whoever prepares the files."""
        return []

    def image_root(self, file: Path) -> Path:
        """The folder from which the image paths of a table count."""
        return file.parent

    def image_names(self, file: Path) -> Iterator[str]:
        """The paths of the image files that the rows of a table name, whether or not they are there."""
        return iter(())

    @property
    def holds(self) -> tuple[str, tuple[int | None, ...]]:
        """ "image" or "features", and its shape."""
        if self.gives_features:
            return "features", (self.data.num_patches, self.data.feature_size)
        return "image", (None, None, 3)

    @property
    def holdout(self) -> float:
        """The share of the groups of "train" that becomes "validation"."""
        return 0.0 if self.table or self.data.validation else self.data.holdout

    def files(self) -> dict[str, list[Path]]:
        """The files of each split that has its own files."""
        found = {split: [file for pattern in some for file in self.find(pattern)] for split, some in self._patterns}
        return {split: list(dict.fromkeys(files)) for split, files in found.items()}

    @property
    def _patterns(self) -> list[tuple[str, tuple[str, ...]]]:
        """(split, its files and globs) of each split that has some."""
        if self.table:
            return [("validation", (self.table,) if isinstance(self.table, str) else self.table)]
        named = {"train": self.data.train, "validation": self.data.validation}
        return [(split, (pattern,)) for split, pattern in named.items() if pattern]

    @property
    def split_names(self) -> tuple[str, ...]:
        """All splits, also a held-out "validation", which `files` lacks."""
        return tuple(split for split, _ in self._patterns) + ("validation",) * bool(self.holdout)

    def rows(self, files: list[Path], vocabulary: Vocabulary, images: bool = True) -> Iterator[Described]:
        """Every row of `files` as from `described`. Skips the products whose id appeared before."""
        seen: set[str] = set()
        for part in (part for file in files for part in self.cut(file, vocabulary)):
            for number, found, complete in self.described(part, vocabulary, images):
                if isinstance(found, Product):
                    if found.id in seen:
                        found = Skipped(found.where, found.id, DUPLICATE)
                    seen.add(found.id)
                yield number, found, complete

    def products(
        self, files: list[Path], vocabulary: Vocabulary, wanted: Callable[[str], bool] = lambda group: True
    ) -> Iterator[Product | Skipped]:
        """Every row of `files`, as a product if its group is `wanted`, else as skipped."""
        for _, found, complete in self.rows(files, vocabulary):
            if isinstance(found, Product) and not wanted(found.group):
                found = Skipped(found.where, found.id, OTHER_SPLIT, found.group)
            yield found if isinstance(found, Skipped) else complete()

    def held_out(self, group: str) -> bool:
        """Whether `group` is held out for validation: depends on its hash alone."""
        return hashed(group) < self.holdout

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """A hash of the settings, the vocabulary, and the tables' names and contents; not of image files outside."""
        stats = [(split, *contents(files, self.data.prepared)) for split, files in self.files().items()]
        settings = dataclasses.asdict(self.data) | {"holdout": self.holdout} | dict.fromkeys(LOCATIONS)
        settings = {name: value for name, value in settings.items() if name not in READING}
        if self.data.max_images == 1:  # as before there was such a setting
            settings["columns"] = {k: v for k, v in settings["columns"].items() if k != "more_images"}
            del settings["max_images"]
        content = (stats, settings, self.version, self.image_size, vocabulary.fingerprint)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def open_source(data: DataConfig, image_size: int, table: str | Sequence[str] | None = None) -> DataSource:
    """The source `data.source`; with `table`, this file or glob alone, or these, as the split "validation".

    Raises ValueError on an unknown source, a missing table, or a source that does not fit `data.feature_size`.
    """
    kind = SOURCES[data.source]
    if not (data.train or table):
        raise ValueError("config.data.train is not set: give it the path of a product table")
    if kind.gives_features != bool(data.feature_size):
        remedy = "give their number and size" if kind.gives_features else "leave them at 0"
        raise ValueError(
            f"data.source {data.source!r} gives {'patch features' if kind.gives_features else 'images'}, but "
            f"data.num_patches is {data.num_patches} and data.feature_size {data.feature_size}: {remedy}"
        )
    return kind(data, image_size, table if isinstance(table, str | None) else tuple(table))


def hashed(group: str) -> float:
    """A number in [0, 1) that depends on the group's name alone: those below data.holdout are held out."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64


def contents(files: list[Path], folder: str | Path) -> list[tuple]:
    """(name, SHA-256) of each file, or of the names in a folder; of one in a store (name, bytes, time of change).

    Hashes are noted in `folder`, if it exists, and taken from there while a file's size and time are the same.
    """
    found, note = [], paths.as_path(folder) / HASHES
    noted = _read_hashes(note)
    before = dict(noted)
    for file in files:
        stat = paths.size_and_time(file)
        if paths.is_remote(file):
            found.append((file.name, *stat))
            continue
        key = str(file.absolute())
        if noted.get(key, [])[:2] != [*stat]:
            noted[key] = [*stat, _sha256(key, *stat)]
        found.append((file.name, noted[key][2]))
    if noted != before and note.parent.is_dir():
        with contextlib.suppress(OSError), summed_write(note) as path:
            path.write_text(json.dumps(noted))
    return found


def _read_hashes(note: Path) -> dict[str, list]:
    """{file: [bytes, time of change, SHA-256]}, {} where the note is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return {} if blocks_damage(note) else json.loads(note.read_text())
    return {}


@functools.lru_cache(1024)
def _sha256(file: str, size: int, time: int) -> str:
    path = Path(file)
    if path.is_dir():  # of pictures: its rows are their names
        names = sorted(str(found.relative_to(path)) for found in path.rglob("*"))
        return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return sha256(path)
