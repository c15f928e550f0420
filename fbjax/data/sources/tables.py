"""The source "tables": rows of a product table become products, with embedded images or paths of image files.

Checks the rows; `table_readers` knows the file formats. An unusable row becomes a `Skipped`.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fbjax.config.schema import Columns
from fbjax.core import paths
from fbjax.data.sources import fashiongen, table_readers
from fbjax.data.sources.base import SOURCES, DataSource, Described, Part, Product, Skipped
from fbjax.data.sources.images import encode_array, normalise_image
from fbjax.data.sources.table_readers import column_names, listed, read_rows
from fbjax.data.text.wordpiece import Vocabulary

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", fashiongen.SUFFIX)
ROWS_AT_ONCE = 256  # in a part of a text or HDF5 file
MAX_NAME = 500  # characters of an id, category or group: a longer cell comes from a quote that was never closed
MAX_IMAGE_BYTES = 2**28
NOTHING = frozenset(("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A"))  # how programs spell a missing value


@SOURCES.register("tables")
class Tables(DataSource):
    """Parquet, CSV, TSV, JSON Lines, and Fashion-Gen's HDF5 files.

    A part of a text file contains its rows, since nobody can start reading in the middle; without images they are
    small. A part with embedded images contains only the position of its rows, and the worker reads them.
    """

    def find(self, pattern: str) -> list[Path]:
        if fashiongen.is_named(pattern):
            return [fashiongen.find(pattern, self.data.manual_dir)]
        files = super().find(pattern)
        if wrong := [file for file in files if file.suffix.lower() not in SUFFIXES]:
            raise ValueError(f"{wrong[0]} is none of {', '.join(SUFFIXES)}")
        return files

    def check(self, vocabulary: Vocabulary | None = None) -> None:
        for file in itertools.chain.from_iterable(self.files().values()):
            _check_columns(file, mapped_columns(self.data.columns), " (map them in config.data.columns)")

    def count(self, files: list[Path]) -> int | None:
        return table_readers.count_rows(files)

    def about(self, file: Path) -> str:
        return f"; its columns are {listed(column_names(file))}"

    def texts(self) -> Iterator[str]:
        self.check()
        columns = self.data.columns
        for row in itertools.chain.from_iterable(read_rows(file, {*columns.text}) for file in self.files()["train"]):
            if isinstance(row, dict) and (text := _joined(row, columns)[0]):
                yield text

    def cut(self, file: Path, vocabulary: Vocabulary) -> Iterator[Part]:
        if file.suffix.lower() == fashiongen.SUFFIX:
            total = fashiongen.count_rows(file)
            for start in range(0, total, ROWS_AT_ONCE):
                yield Part(file, start + 1, range(start, min(start + ROWS_AT_ONCE, total)))
        elif self.data.columns.image in table_readers.binary_columns(file):
            first = 1
            for group, length in enumerate(table_readers.group_lengths(file)):
                yield Part(file, first, group)
                first += length
        else:
            numbered = enumerate(read_rows(file, {*mapped_columns(self.data.columns)}), start=1)
            while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
                yield Part(file, some[0][0], tuple(row for _, row in some))

    def described(self, part: Part, vocabulary: Vocabulary, images: bool = True) -> Iterator[Described]:
        columns = self.data.columns
        root = paths.as_path(self.data.image_root or part.file.parent)
        names = {name for name in mapped_columns(columns) if images or name != columns.image}
        for number, row in enumerate(_rows_of(part, names), start=part.first):
            found = describe(row, columns, f"{part.file.name} row {number}")
            cell = row.get(columns.image) if isinstance(row, dict) else None
            yield number, found, functools.partial(with_image, found, cell, root, self.image_size)


def _rows_of(part: Part, names: set[str]) -> Iterator[dict | str]:
    """The rows of a part as from `table_readers.read_rows`."""
    if isinstance(part.rows, range):
        return fashiongen.read_rows(part.file, names, part.rows)
    return table_readers.read_group(part.file, part.rows, names) if isinstance(part.rows, int) else iter(part.rows)


def _check_columns(file: Path, names: Iterable[str], remedy: str = "") -> None:
    there = column_names(file)
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"{file} has no column {', '.join(map(repr, missing))}; it has {listed(there)}{remedy}")


def mapped_columns(columns: Columns) -> list[str]:
    return [columns.id, *columns.text, columns.image, columns.category, *[columns.group] * bool(columns.group)]


def read_labels(files: list[Path], columns: Columns, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{id: its cells of the columns `names`, "" if empty} of every possible product; does not read images.

    Raises ValueError with the existing columns if one is missing.
    """
    labels: dict[str, tuple[str, ...]] = {}
    wanted = {*mapped_columns(columns), *names} - {columns.image}
    for file in files:
        _check_columns(file, names)
        for number, row in enumerate(read_rows(file, wanted), start=1):
            described = describe(row, columns, f"{file.name} row {number}")
            if isinstance(described, Product):
                labels.setdefault(described.id, tuple(clean_name(row.get(name)) for name in names))
    return labels


def describe(row: dict | str, columns: Columns, where: str) -> Product | Skipped:
    """A row's product without its image, or the reason for skipping it."""
    if isinstance(row, str):
        return Skipped(where, "", row)
    named = {"id": clean_name(row.get(columns.id)), "category": clean_name(row.get(columns.category))}
    named["group"] = (clean_name(row.get(columns.group)) if columns.group else "") or named["id"]
    text, ends = _joined(row, columns)
    for value, problem in ((named["id"], "missing id"), (text, "empty text"), (named["category"], "missing category")):
        if not value:
            return Skipped(where, named["id"][:MAX_NAME], problem)
    for role, name in named.items():
        if len(name) > MAX_NAME:
            return Skipped(where, named["id"][:MAX_NAME], f"{role} of more than {MAX_NAME} characters")
    return Product(text=text, image=b"", where=where, column_ends=ends, **named)


def with_image(product: Product, cell, root: Path, max_side: int) -> Product | Skipped:
    """`product` with the image of its cell, or the reason for skipping it."""
    try:
        return dataclasses.replace(product, image=normalise_image(image_bytes(cell, root), max_side))
    except FileNotFoundError:
        reason = "image file not found"
    except OSError:
        reason = "unreadable image file"
    except ValueError as error:
        reason = str(error)
    return Skipped(product.where, product.id, reason, product.group)


def image_bytes(cell, root: Path) -> bytes:
    """The encoded image of a cell: bytes, pixels, a path, a {bytes, path} struct, or the first of a list."""
    if isinstance(cell, np.ndarray):
        return encode_array(cell)
    if isinstance(cell, list):
        cell = next(filter(None, cell), None)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    name = cell.strip() if isinstance(cell, str) else ""
    if not name or name in NOTHING:
        raise ValueError("missing image")
    if name.lower().startswith("file://"):
        name = urllib.parse.unquote(name[len("file://") :].removeprefix("localhost"))
    elif is_url(name):
        raise ValueError("image is a URL: it is not fetched")
    path = _image_path(name, root)
    if paths.size_and_time(path)[0] > MAX_IMAGE_BYTES:
        raise ValueError(f"image file of more than {MAX_IMAGE_BYTES // 2**20} MiB")
    encoded = path.read_bytes()
    if not encoded:
        raise ValueError("empty image file")
    return encoded


def is_url(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://|//|data:", name, re.IGNORECASE) is not None


def _image_path(name: str, root: Path) -> Path:
    """The regular file of a cell's path, which may be a Windows path."""
    there = False
    for path in (root / name, root / name.replace("\\", "/")):
        with contextlib.suppress(ValueError, OSError):  # NUL, half a surrogate pair, too long a name
            if path.is_file():
                return path
            there = there or path.exists()
    raise OSError(f"{name} is no file") if there else FileNotFoundError(name)  # a folder, or an endless device


def _joined(row: dict, columns: Columns) -> tuple[str, tuple[int, ...]]:
    """The text of a row, and its length up to the end of each text column."""
    text, ends = "", []
    for part in (clean_text(row.get(name)) for name in columns.text):
        text += " " * bool(text and part) + part
        ends.append(len(text))
    return text, tuple(ends)


def clean_text(value) -> str:
    """A cell's text with single spaces, "" if there is none; of lists and structs the joined values."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | dict):
        value = " ".join(_scalars(value, depth=3))
    if value is None or isinstance(value, np.ndarray) or value != value:  # None, pixels or NaN
        return ""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())  # half a surrogate pair becomes ?


def clean_name(value) -> str:
    """The text of an id, category or group, without NUL, which NumPy drops at the end of a string."""
    name = clean_text(value)
    name = " ".join(name.replace("\0", " ").split()) if "\0" in name else name
    return "" if name in NOTHING else name


def _scalars(value, depth: int) -> Iterator[str]:
    for part in value.values() if isinstance(value, dict) else value:
        if not isinstance(part, list | dict):
            yield clean_text(part)
        elif depth > 1:
            yield from _scalars(part, depth - 1)
