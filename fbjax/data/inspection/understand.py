"""The content of a product table: its columns, their possible roles, and the rows that `prepare` would skip.

Reads all rows as `prepare` does, but opens only a sample of the images. Writes nothing.
"""

import collections
import dataclasses
import io
import itertools
from array import array
from pathlib import Path

import numpy as np
from PIL import Image

from fbjax.config.data import Columns, DataConfig
from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.data.inspection import column_roles
from fbjax.data.inspection.column_roles import ROLES, Column, shorten
from fbjax.data.inspection.grouping import Grouping, propose_group
from fbjax.data.inspection.image_paths import path_by_id
from fbjax.data.sources import tables
from fbjax.data.sources.base import Skipped, hashed
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.pictures import NOTHING, image_bytes, with_image
from fbjax.data.sources.readers.base import SURPLUS, Table
from fbjax.data.sources.readers.sampling import sample_rows
from fbjax.data.sources.readers.text import Text
from fbjax.data.text.scripts import num_words

PROFILED = 30_000  # rows from which columns are described
SAMPLED = 200  # rows of which the image is opened
TEXTS = 2000  # about, that are kept of a long table, to see what a vocabulary knows of them
LIST = 101  # products in a full candidate list: the positive and 100 others


@dataclasses.dataclass(frozen=True)
class Skips:
    """Rows that `prepare` would skip for one reason."""

    reason: str
    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The images of a sample of the rows."""

    num_tried: int = 0
    kinds: tuple[tuple[str, int], ...] = ()  # (format and mode, count)
    sides: tuple[int, ...] = ()  # the shorter side of each, sorted
    skips: tuple[Skips, ...] = ()


def _no_numbers():
    return dataclasses.field(default_factory=lambda: np.zeros(0))


@dataclasses.dataclass(frozen=True)
class TableCheck:
    files: tuple[str, ...]  # each with its format
    warnings: tuple[str, ...]
    num_rows: int
    columns: tuple[Column, ...]
    mapping: dict[str, tuple[str, ...]]  # role -> columns; () if none fits
    image_root: str
    images_outside: bool
    image_size: int
    network: str  # patches.network of the config; "" where the mapping is proposed
    holdout: float  # share of the groups for validation; 1.0 if validation has its own table
    groupings: tuple[Grouping, ...] = ()  # what speaks for or against columns as the group, the best first
    skips: tuple[Skips, ...] = ()
    num_products: int = 0
    categories: tuple[tuple[str, int, int], ...] = ()  # (name, products, groups), the largest first
    group_places: np.ndarray = _no_numbers()  # of each group the number `hashed`, ascending: a holdout takes the lower
    group_sizes: np.ndarray = _no_numbers()  # products of each
    num_repeated: int = 0  # products that share their text with a product of another group
    words: tuple[float, float] = (0, 0)  # of a text: in the middle, and at most of 95 %
    texts: tuple[str, ...] = ()  # some, spread over the table
    num_empty_words: int = 0  # text cells that only say "nan" or the like
    pictures: Pictures = Pictures()

    @property
    def num_groups(self) -> int:
        return len(self.group_places)

    @property
    def missing(self) -> list[str]:
        return [role for role in ROLES if role not in ("group", "id") and not self.mapping[role]]


def understand(files: list[Path], config: Config | None = None) -> TableCheck:
    """The check of `files` with the mapping of `config`, or with a proposed mapping."""
    settings = config or Config()
    data = settings.data
    plain = dataclasses.replace(data, extra_cells="skip")  # such rows are counted
    opened = [tables.open_table(file, plain) for file in files]
    forms = [_form(table) for table in opened]
    folder = tables.image_folder(opened[0], data)
    roots = [] if config else column_roles.folders_beside(folder.root)
    columns, rows, num_rows, irregular = _describe_columns(opened, folder, roots, data.extra_cells == "text")
    mapping, groupings, warnings = _mapping(columns, rows, config)
    if not config and mapping["id"] and not mapping["image"]:
        mapping["image"] = path_by_id(mapping["id"][0], rows, folder.root)
    warnings = (*warnings, *irregular, *_rounded(columns, mapping))
    image = next((c for c in columns if (c.name,) == mapping["image"]), None)
    root, outside = (image.root, image.outside) if image else ("", False)
    if config:
        warnings += _elsewhere(folder, root, outside)
    found = TableCheck(
        tuple(line for line, _ in forms),
        tuple(word for _, words in forms for word in words) + warnings,
        num_rows,
        tuple(columns),
        mapping,
        root or data.image_root,
        outside or data.images_outside,
        settings.patches.image_size,
        config.patches.network if config else "",
        1.0 if data.validation else data.holdout,
        tuple(groupings),
    )
    if not all(mapping[role] for role in ("text", "category")):
        return found
    data = dataclasses.replace(data, columns=as_columns(mapping))
    found = dataclasses.replace(found, **_describe_products(files, data, num_rows))
    return dataclasses.replace(found, pictures=_look(opened, found)) if mapping["image"] else found


def as_columns(mapping: dict[str, tuple[str, ...]]) -> Columns:
    single = {role: (*mapping[role], "")[0] for role in ROLES if role != "text"}
    return Columns(text=mapping["text"], **single)


def _form(table: Table) -> tuple[str, list[str]]:
    """(name, size and format of a file, warnings)."""
    kind, warnings = table.about()
    return f"{table.path.name}, {paths.size_and_time(table.path)[0] / 1e6:.1f} MB: {kind}", warnings


def _elsewhere(folder: ImageFolder, root: str, outside: bool) -> tuple[str, ...]:
    """Warnings where a config's folder of images is not the one to take."""
    if root:
        return (f"config.data.image_root: few images are in {folder.root}; taken here: {root}",)
    if outside and not folder.outside:
        return (f"config.data.images_outside: images lie outside {folder.root}; taken here: true",)
    return ()


def _describe_columns(
    opened: list[Table], folder: ImageFolder, roots: list[Path], takes_rest: bool
) -> tuple[list[Column], list[dict], int, tuple[str, ...]]:
    """All columns of the tables, from the first `PROFILED` rows; these, one a product; the number of all; warnings."""
    binary = set().union(*(table.binary() for table in opened))
    names = list(dict.fromkeys(name for table in opened for name in table.columns()))
    plain, kept, num_rows, warnings = set(names) - binary, [], 0, []
    for table in opened:
        width, short, surplus = len(table.columns()) if isinstance(table, Text) else 0, 0, 0
        for row in table.rows(plain):
            num_rows += 1
            if isinstance(row, str):
                surplus += row == SURPLUS
                continue
            short += len(row) < width
            if num_rows <= PROFILED:
                kept.append(row)
        warnings += _irregular(table.path.name, surplus, short, takes_rest)
    sampled = [row for _, _, row in sample_rows(opened, binary, SAMPLED, num_rows)] if binary else []
    sampled = [row for row in sampled if isinstance(row, dict)]

    def describe(rows):
        cells = {name: [row.get(name) for row in (sampled if name in binary else rows)] for name in names}
        return [column_roles.describe_column(name, cells[name], folder, roots) for name in names]

    columns = describe(kept)
    if joins := column_roles.joining(columns):
        kept = [next(run) for _, run in itertools.groupby(kept, lambda row: row.get(joins))]
        columns = describe(kept)
    return columns, kept, num_rows, tuple(warnings)


def _irregular(name: str, surplus: int, short: int, takes_rest: bool) -> list[str]:
    """Warnings of rows whose cells do not match the header."""
    found = []
    if surplus:
        skipped = (
            "they are skipped; quote such cells, or let the last text column take them: config.data.extra_cells=text"
        )
        found.append(
            f"{name}: {surplus:,} rows have more cells than the header, mostly for an unquoted delimiter: "
            + ("the last text column takes them" if takes_rest else skipped)
        )
    if short:
        found.append(f"{name}: {short:,} rows have fewer cells than the header: the last columns are empty there")
    return found


def _rounded(columns: list[Column], mapping: dict[str, tuple[str, ...]]) -> list[str]:
    """Warnings of ids that have lost their last digits."""
    identifying = {*mapping["id"], *mapping["group"], *(c.name for c in columns if column_roles.may_name_ids(c.name))}
    return [
        f"{column.name}: {column.num_rounded:,} numbers such as {column.examples[0]} have lost their last digits, in a "
        "spreadsheet or as floats, so that ids may repeat: write the column as text, and export it again"
        for column in columns
        if column.num_rounded and column.name in identifying
    ]


def _mapping(
    columns: list[Column], rows: list[dict], config: Config | None
) -> tuple[dict[str, tuple[str, ...]], list[Grouping], tuple[str, ...]]:
    """The config's mapping, with proposals for missing columns, and warnings; without a config, only proposals."""
    proposed = column_roles.propose(columns)
    groupings = propose_group(columns, rows, proposed)
    proposed["group"] = tuple(each.column for each in groupings[:1] if each.fits)
    if config is None:
        return proposed, groupings, ()
    given, there, mapping, warnings = config.data.columns, {column.name for column in columns}, {}, []
    for role in ROLES:
        value = getattr(given, role)
        wanted = tuple(name for name in (value if role == "text" else (value,)) if name)
        needed = [name for _, name, _ in tables.image_parts(value) if name] if role == "image" else wanted
        absent = [name for name in needed if name not in there]
        mapping[role] = proposed[role] if absent else wanted
        if absent:
            instead = f"; taken here: {', '.join(proposed[role])}" if proposed[role] else ""
            warnings.append(f"config.data.columns.{role}: there is no column {', '.join(map(repr, absent))}{instead}")
    return mapping, groupings, tuple(warnings)


def _describe_products(files: list[Path], data: DataConfig, num_rows: int) -> dict:
    """Statistics of all rows without their images, as fields of `TableCheck`; holds some 32 bytes a row in memory."""
    skips: dict[str, list] = {}
    codes: dict[str, int] = {}  # of categories
    categories, groups, texts, words = array("q"), array("d"), array("q"), array("d")
    shown, every, num_empty_words = [], max(num_rows // TEXTS, 1), 0
    for _, described, _ in tables.Tables(data, 0).rows(files, None, images=False):
        if isinstance(described, Skipped):
            _note(skips, described)
            continue
        categories.append(codes.setdefault(described.category, len(codes)))
        groups.append(hashed(described.group))
        shown += [described.text] * (len(texts) % every == 0 or len(shown) < 2)
        texts.append(hash(described.text))
        words.append(num_words(described.text))
        num_empty_words += described.text in NOTHING
    places, owners, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    counts = np.bincount(categories, minlength=len(codes))
    named = zip(codes, counts.tolist(), _num_owners(np.array(categories), owners).tolist(), strict=True)
    return {
        "skips": _listed(skips),
        "num_products": len(words),
        "categories": tuple(sorted(named, key=lambda category: -category[1])),
        "group_places": places,
        "group_sizes": sizes,
        "num_repeated": _num_shared(np.array(texts), owners),
        "words": (np.median(words), np.quantile(words, 0.95, method="lower")) if words else (0, 0),
        "texts": tuple(shown),
        "num_empty_words": num_empty_words,
    }


def _num_shared(texts: np.ndarray, groups: np.ndarray) -> int:
    """The number of products whose text another group has too."""
    _, texts, counts = np.unique(texts, return_inverse=True, return_counts=True)
    return int(counts[_num_owners(texts, groups) > 1].sum())


def _num_owners(codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The number of groups that have each code; both are whole numbers from 0, one a product."""
    num_groups = groups.max(initial=0) + 1
    return np.bincount(np.unique(codes * num_groups + groups) // num_groups, minlength=codes.max(initial=-1) + 1)


def _look(opened: list[Table], found: TableCheck) -> Pictures:
    """Opens the images of a sample of the rows as `prepare` does."""
    columns = as_columns(found.mapping)
    data = DataConfig(image_root=found.image_root, images_outside=found.images_outside)
    names, skips = set(tables.mapped_columns(columns)), {}
    kinds, sides, tried = collections.Counter(), [], 0
    for table, number, row in sample_rows(opened, names, SAMPLED, found.num_rows):
        where = f"{table.path.name} row {number}"
        product = tables.describe(row, columns, where, where)
        if isinstance(product, Skipped):
            continue
        tried += 1
        cell = tables.image_cell(row, columns)
        folder = tables.image_folder(table, data)
        complete = with_image(product, cell, folder, found.image_size)
        if isinstance(complete, Skipped):
            _note(skips, complete, cell)
            continue
        with Image.open(io.BytesIO(image_bytes(cell, folder))) as image:
            kinds[f"{image.format} {image.mode}"] += 1
            sides.append(min(image.size))
    return Pictures(tried, tuple(kinds.most_common()), tuple(sorted(sides)), _listed(skips))


def _note(skips: dict[str, list], skipped: Skipped, cell=None) -> None:
    name = f", {shorten(cell)!r}" if isinstance(cell, str) else ""
    named = f"{skipped.where}{f' (id {shorten(skipped.id)})' if skipped.id else ''}{name}"
    skips.setdefault(skipped.reason, [0, named])[0] += 1


def _listed(skips: dict[str, list]) -> tuple[Skips, ...]:
    return tuple(Skips(reason, *noted) for reason, noted in sorted(skips.items(), key=lambda item: -item[1][0]))
