"""What records are made of: tables, Fashion-Gen's files or the release's, their columns, and what is asked of images.

Knows how each is read, nothing of how records are kept.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fbjax.config.schema import Columns, Config
from fbjax.core import paths
from fbjax.data.records import shards
from fbjax.data.sources import release_features, tables
from fbjax.data.text.wordpiece import Vocabulary


@dataclasses.dataclass(frozen=True)
class Source:
    """What records are made of: `splits` of (name, table or glob); `holdout` > 0 cuts "validation" off "train"."""

    splits: tuple[tuple[str, str], ...]
    columns: Columns
    image_root: str
    image_size: int
    holdout: float = 0.0
    manual_dir: str = ""
    features: tuple[int, int] | None = None  # (P, C) where the files are the release's, with features for images

    @classmethod
    def from_config(cls, config: Config) -> "Source":
        """The train and validation tables of a config."""
        data = config.data
        if not data.train:
            raise ValueError("config.data.train is not set: give it the path of a product table")
        splits = (("train", data.train),) + ((("validation", data.validation),) if data.validation else ())
        holdout = 0.0 if data.validation else data.holdout
        return cls._of(config, splits, holdout)

    @classmethod
    def one_table(cls, pattern: str, config: Config) -> "Source":
        """A table of its own to evaluate on, read with the config's columns."""
        return cls._of(config, (("validation", pattern),))

    @classmethod
    def _of(cls, config: Config, splits: tuple[tuple[str, str], ...], holdout: float = 0.0) -> "Source":
        data, patches = config.data, config.patches
        size, ready_made = patches.image_size, patches.ready_made
        return cls(splits, data.columns, data.image_root, size, holdout, data.manual_dir, ready_made)

    def files(self) -> dict[str, list[Path]]:
        return {split: tables.find_files(pattern, self.manual_dir) for split, pattern in self.splits}

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(split for split, _ in self.splits) + ("validation",) * bool(self.holdout)

    def check(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError or FileNotFoundError where a file, or a column of it, is missing."""
        for files in self.files().values():
            if self.features:
                for file in files:
                    release_features.Reader(vocabulary, *self.features).layout(file)
            else:
                tables.check_columns(files, self.columns)

    def products(
        self, files: list[Path], vocabulary: Vocabulary, wanted: Callable[[str], bool]
    ) -> Iterator[tables.Product | tables.Skipped]:
        """Every row of `files` as a product of a `wanted` group, or as skipped."""
        if self.features:
            return release_features.Reader(vocabulary, *self.features).products(files, wanted)
        return tables.read_products(files, self.columns, self.image_root, self.image_size, wanted)

    def cut(self, file: Path, vocabulary: Vocabulary) -> Iterator[shards.Part]:
        """`file` in stretches that can be read apart."""
        if self.features:
            return shards.cut_release(file, release_features.Reader(vocabulary, *self.features).layout(file))
        return shards.cut_table(file, tables.mapped_columns(self.columns), self.columns.image)

    def described(
        self, part: shards.Part, vocabulary: Vocabulary, images: bool = True
    ) -> Iterator[tuple[int, tables.Product | tables.Skipped, Callable[[], tables.Product | tables.Skipped]]]:
        """(number, the product but for its image, or why there is none, what gives it its image) of each row.

        Without `images` the last is not to be called, and images are not read.
        """
        if self.features:
            reader = release_features.Reader(vocabulary, *self.features)
            for number, line in shards.read_lines(part):
                found, cells = reader.describe(f"{part.file.name} line {number}", line, part.layout)
                yield number, found, functools.partial(reader.with_features, found, cells)
            return
        root, image = paths.as_path(self.image_root or part.file.parent), self.columns.image
        names = {name for name in tables.mapped_columns(self.columns) if images or name != image}
        for number, row in shards.read_rows(part, names):
            found = tables.describe(row, self.columns, f"{part.file.name} row {number}")
            cell = row.get(image) if isinstance(row, dict) else None
            yield number, found, functools.partial(tables.with_image, found, cell, root, self.image_size)

    def held_out(self, group: str) -> bool:
        """Whether `group` is of the share that is cut off "train": by its hash, whatever else the table holds."""
        return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64 < self.holdout

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """Changes with any setting, the vocabulary, and any table's name, size or time of change.

        Image files outside the tables are not looked at: delete the prepared folder where they changed.
        """
        stats = [
            (split, file.name, *paths.size_and_time(file)) for split, files in self.files().items() for file in files
        ]
        settings = (stats, dataclasses.astuple(self.columns), self.image_root, self.image_size, self.holdout)
        settings += (self.features,) if self.features else ()
        return hashlib.sha256(repr((settings, vocabulary.fingerprint)).encode()).hexdigest()[:12]
