"""The source "tables": rows of a product table become products, with embedded images or paths of image files.

Checks the rows; `readers` know the file formats. An unusable row becomes a `Skipped`.
"""

import dataclasses
import functools
import itertools
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fbjax.config.data import Columns, DataConfig
from fbjax.core import paths
from fbjax.core.registry import meant
from fbjax.data.sources import fashiongen, readers
from fbjax.data.sources.base import DUPLICATE, SOURCES, DataSource, Described, Part, Product, Skipped
from fbjax.data.sources.cells import clean_id, clean_name, clean_text, plain_text
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.pictures import is_url, pictures_of, with_images
from fbjax.data.sources.readers.base import Reading, Table, listed
from fbjax.data.text.wordpiece import Vocabulary

ROWS_AT_ONCE = 256  # in a part of a file that is read from its start
MOST_ROWS = 1000  # of one product
MAX_NAME = 500  # characters of an id, category or group: a longer cell comes from a quote that was never closed
FURTHER_ROW, FURTHER_PICTURE = "further row of a product", "further picture of a product"


@SOURCES.register("tables")
class Tables(DataSource):
    """Product tables of every format that `readers` knows.

    Rows in succession with the same id, and no other text, category or group, are one product: the first filled cell
    of each column counts. Without an id column, the id is FOLDER/FILE:ROW. A part of a file that is read from its start
    contains its rows, since nobody can start reading in the middle; without images they are small. A part with
    embedded images contains only the position of its rows, and the worker reads them.
    """

    version = 2

    def find(self, pattern: str) -> list[Path]:
        if fashiongen.is_named(pattern):
            return [fashiongen.find(pattern, self.data.manual_dir)]
        return readers.find_tables(pattern) or super().find(pattern)

    def open(self, file: Path) -> Table:
        """The reader of a file, with the settings of `data`."""
        return open_table(file, self.data)

    def check(self, vocabulary: Vocabulary | None = None) -> None:
        for file in itertools.chain.from_iterable(self.files().values()):
            _check_columns(self.open(file), mapped_columns(self.data.columns), " (map them in config.data.columns)")

    def count(self, files: list[Path]) -> int | None:
        counts = [self.open(file).count() for file in files]
        return None if None in counts else sum(counts)

    def about(self, file: Path) -> str:
        return f"; its columns are {listed(self.open(file).columns())}"

    def notes(self) -> list[str]:
        return [note for files in self.files().values() for file in files for note in self.open(file).about()[1]]

    def image_root(self, file: Path) -> Path:
        return image_folder(self.open(file), self.data).root

    def image_names(self, file: Path) -> Iterator[str]:
        table, columns = self.open(file), self.data.columns
        folder = image_folder(table, self.data)
        if {*columns_of_images(columns)} & {*table.binary()}:
            return
        for row in table.rows(read_for_images(columns)):
            pictures = pictures_of(image_cell(row, columns)) if isinstance(row, dict) else []
            yield from (folder.named(name) for name in pictures if isinstance(name, str) and not is_url(name))

    def texts(self) -> Iterator[str]:
        self.check()
        columns = self.data.columns
        tables = map(self.open, self.files()["train"])
        for row in itertools.chain.from_iterable(table.rows({*columns.text}) for table in tables):
            if isinstance(row, dict) and (text := _joined(row, columns)[0]):
                yield text

    def cut(self, file: Path, vocabulary: Vocabulary) -> Iterator[Part]:
        table, columns, first = self.open(file), self.data.columns, 1
        if {*columns_of_images(columns)} & {*table.binary()}:
            for block, length in enumerate(table.blocks()):
                yield Part(file, first, block)
                first += length
            return
        rows: list[dict | str] = []
        for row in table.rows({*mapped_columns(columns)}):
            full = len(rows) >= ROWS_AT_ONCE and not (len(rows) < MOST_ROWS and _same_id(row, rows[-1], columns))
            if full:
                yield Part(file, first, tuple(rows))
                first, rows = first + len(rows), []
            rows.append(row)
        if rows:
            yield Part(file, first, tuple(rows))

    def described(self, part: Part, vocabulary: Vocabulary, images: bool = True) -> Iterator[Described]:
        columns, table = self.data.columns, self.open(part.file)
        folder = image_folder(table, self.data)
        names = {*mapped_columns(columns)} - (set() if images else {*columns_of_images(columns)})
        rows = table.read_block(part.rows, names) if isinstance(part.rows, int) else part.rows
        most = self.data.max_images
        for number, row in enumerate(merged(rows, columns), start=part.first):
            if most > 1 and isinstance(row, Further) and row.reason == FURTHER_PICTURE:
                continue  # a picture of the product above
            found = describe(row, columns, f"{part.file.name} row {number}", row_id(part.file, number))
            cell = image_cell(row, columns) if isinstance(row, dict) else None
            yield number, found, functools.partial(with_images, found, cell, folder, self.image_size, most)


def open_table(file: Path, data: DataConfig) -> Table:
    """The reader of a file with the settings of `data`."""
    return readers.open_table(file, Reading(data.encoding, data.columns.text[-1] * (data.extra_cells == "text")))


def image_folder(table: Table, data: DataConfig) -> ImageFolder:
    """Where the image paths of a table lie."""
    return ImageFolder(paths.as_path(data.image_root) if data.image_root else table.folder, data.images_outside)


def _check_columns(table: Table, names: Iterable[str], remedy: str = "") -> None:
    there = table.columns()
    if missing := [name for name in names if name not in there]:
        hints = [f"{name!r} ({hint})" if (hint := meant(name, there)[2:]) else repr(name) for name in missing]
        raise ValueError(f"{table.path} has no column {', '.join(hints)}; it has {listed(there) or 'none'}{remedy}")


def mapped_columns(columns: Columns) -> list[str]:
    images = sorted(read_for_images(columns))
    return [name for name in (columns.id, *columns.text, *images, columns.category, columns.group) if name]


def columns_of_images(columns: Columns) -> tuple[str, ...]:
    """The columns of a product's pictures, or the paths that are made of columns."""
    return (columns.image, *columns.more_images)


def read_for_images(columns: Columns) -> set[str]:
    """All columns that tell where a product's pictures are."""
    return {name for image in columns_of_images(columns) for _, name, _ in image_parts(image) if name}


def image_parts(image: str) -> list[tuple[str, str, str]]:
    """(text, column after it or "", its format) of ``images/{article_id:.3}/{article_id}.jpg``, or of a column's name.

    A column in braces stands for its cell, ``:.3`` for the first three letters of that (Python's format of a string).
    Raises ValueError where braces are not closed.
    """
    if "{" not in image:
        return [("", image, "")]
    try:
        return [(text, name or "", form or "") for text, name, form, _ in string.Formatter().parse(image)]
    except ValueError as error:
        raise ValueError(f"config.data.columns.image {image!r}: {error}") from None


def image_cell(row: dict, columns: Columns):
    """The cell of a row's image, or its path made of other cells; None where one of these is empty.

    With `Columns.more_images` the list of those of all columns.
    """
    if not columns.more_images:
        return _image_cell(row, columns.image)
    return [_image_cell(row, image) for image in columns_of_images(columns)]


def _image_cell(row: dict, image: str):
    if "{" not in image or image in row:
        return row.get(image)
    parts = image_parts(image)
    cells = {name: clean_id(row.get(name)) for _, name, _ in parts if name}
    try:
        path = "".join(text + format(cells.get(name, ""), form) for text, name, form in parts)
    except ValueError as error:  # a format that is not for strings
        raise ValueError(f"config.data.columns.image {image!r}: {error}") from None
    return path if all(cells.values()) else None


def read_labels(files: list[Path], data: DataConfig, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{id: its cells of the columns `names`, "" if empty} of every possible product; does not read images.

    Raises ValueError with the existing columns if one is missing.
    """
    labels: dict[str, tuple[str, ...]] = {}
    wanted = {*mapped_columns(data.columns), *names} - {*columns_of_images(data.columns)}
    for file in files:
        table = open_table(file, data)
        _check_columns(table, names)
        for number, row in enumerate(merged(table.rows(wanted), data.columns), start=1):
            described = describe(row, data.columns, f"{file.name} row {number}", row_id(file, number))
            if isinstance(described, Product):
                labels.setdefault(described.id, tuple(clean_name(row.get(name)) for name in names))
    return labels


def read_cells(files: Sequence[Path], data: DataConfig, names: Sequence[str], ids: np.ndarray) -> np.ndarray:
    """`read_labels` of the products `ids` [N]: str [N, A], "" also of products that no file has."""
    cells, lacking = read_labels(list(files), data, tuple(names)), ("",) * len(names)
    return np.array([cells.get(str(identity), lacking) for identity in ids], str).reshape(len(ids), len(names))


def row_id(file: Path, number: int) -> str:
    """The id of a row of a table without an id column. The folder tells tables of one name apart."""
    file = file if paths.is_remote(file) else file.absolute()
    return f"{file.parent.name}/{file.name}:{number}"


@dataclasses.dataclass(frozen=True)
class Further:
    """A row that continues the product above it."""

    id: str
    reason: str


def merged(rows: Iterable[dict | str], columns: Columns) -> Iterator[dict | str | Further]:
    """The rows, each product's first one filled from those that continue it; these become `Further`.

    The image cell of a product with several pictures is the list of its cells.
    """
    run, words = [], (*columns.text, columns.category, columns.group)
    product: dict | str = {}  # the rows of `run` as one, without the images
    for row in rows:
        if run and len(run) < MOST_ROWS and _continues(row, product, columns):
            product = product | {name: row[name] for name in words if not _filled(product, name) and _filled(row, name)}
        else:
            yield from _as_one(product, run, columns)
            product, run = row, []
        run.append(row)
    yield from _as_one(product, run, columns)


def _same_id(row: dict | str, other: dict | str, columns: Columns) -> bool:
    both = isinstance(row, dict) and isinstance(other, dict) and columns.id != ""
    return both and row.get(columns.id) == other.get(columns.id) and clean_name(row.get(columns.id)) != ""


def _filled(row: dict, name: str) -> bool:
    return clean_text(row.get(name)) != ""


def _continues(row: dict | str, product: dict | str, columns: Columns) -> bool:
    """Whether `row` has the id of `product`, and no other text, category or group."""
    if not _same_id(row, product, columns):
        return False
    filled = [name for name in (*columns.text, columns.category, columns.group) if _filled(row, name)]
    return all(not _filled(product, name) or clean_text(row[name]) == clean_text(product[name]) for name in filled)


def _as_one(product: dict | str, run: list, columns: Columns) -> Iterator[dict | str | Further]:
    """The product with its pictures, then each further row of `run` with the reason why it is not used."""
    if len(run) < 2:
        yield from run
        return
    words = (*columns.text, columns.category, columns.group)
    own = _new(image_cell(run[0], columns), [])
    pictures, reasons = [*own], []
    for row in run[1:]:
        new = _new(image_cell(row, columns), pictures)
        repeats = all(clean_text(row.get(name)) == clean_text(product.get(name)) for name in words)
        reasons.append(FURTHER_PICTURE if new and pictures else DUPLICATE if repeats and not new else FURTHER_ROW)
        pictures += new
    several = dict.fromkeys(columns.more_images) | {columns.image: pictures}
    yield product if len(pictures) == len(own) else product | several
    for row, reason in zip(run[1:], reasons, strict=True):
        yield Further(clean_id(row.get(columns.id)), reason)


def _new(cell, cells: list) -> list:
    """[cell], or [] if it holds no picture or is one of `cells`."""
    known = (np.array_equal(cell, other) if isinstance(cell, np.ndarray) else cell == other for other in cells)
    return [cell] if pictures_of(cell) and not any(known) else []


def describe(row: dict | str | Further, columns: Columns, where: str, identity: str = "") -> Product | Skipped:
    """A row's product without its image, or the reason for skipping it; `identity`: its id without an id column."""
    if isinstance(row, str | Further):
        return Skipped(where, *(("", row) if isinstance(row, str) else (row.id[:MAX_NAME], row.reason)))
    named = {"id": clean_id(row.get(columns.id)) if columns.id else identity}
    named["category"] = clean_name(plain_text(clean_name(row.get(columns.category))))
    named["group"] = (clean_id(row.get(columns.group)) if columns.group else "") or named["id"]
    text, ends = _joined(row, columns)
    for value, problem in ((named["id"], "missing id"), (text, "empty text"), (named["category"], "missing category")):
        if not value:
            return Skipped(where, named["id"][:MAX_NAME], problem)
    for role, name in named.items():
        if len(name) > MAX_NAME:
            return Skipped(where, named["id"][:MAX_NAME], f"{role} of more than {MAX_NAME} characters")
    return Product(text=text, image=b"", where=where, column_ends=ends, **named)


def _joined(row: dict, columns: Columns) -> tuple[str, tuple[int, ...]]:
    """The text of a row, and its length up to the end of each text column."""
    text, ends = "", []
    for part in (plain_text(row.get(name)) for name in columns.text):
        text += " " * bool(text and part) + part
        ends.append(len(text))
    return text, tuple(ends)
