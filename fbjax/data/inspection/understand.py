"""The content of a product table: its columns, their possible roles, and the rows that `prepare` would skip.

Reads all rows as `prepare` does, but opens only a sample of the images. Writes nothing.
"""

import collections
import dataclasses
import io
import itertools
from pathlib import Path

from PIL import Image

from fbjax.config.schema import Columns, Config, DataConfig
from fbjax.core import paths
from fbjax.data.inspection import column_roles
from fbjax.data.inspection.column_roles import ROLES, Column, shorten
from fbjax.data.sources import fashiongen, table_readers, tables
from fbjax.data.sources.base import Skipped

PROFILED = 100_000  # rows from which columns are described
SAMPLED = 200  # rows of which the image is opened
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


@dataclasses.dataclass(frozen=True)
class TableCheck:
    files: tuple[str, ...]  # each with its format
    warnings: tuple[str, ...]
    num_rows: int
    columns: tuple[Column, ...]
    mapping: dict[str, tuple[str, ...]]  # role -> columns; () if none fits
    image_root: str
    image_size: int
    network: str  # patches.network of the config; "" where the mapping is proposed
    holdout: float  # share of the groups for validation; 1.0 if validation has its own table
    skips: tuple[Skips, ...] = ()
    num_products: int = 0
    categories: tuple[tuple[str, int, int], ...] = ()  # (name, products, groups), the largest first
    num_groups: int = 0
    num_repeated: int = 0  # products that share their text with a product of another group
    words: tuple[int, ...] = ()  # per text, sorted
    texts: tuple[str, ...] = ()
    num_empty_words: int = 0  # text cells that only say "nan" or the like
    pictures: Pictures = Pictures()

    @property
    def missing(self) -> list[str]:
        return [role for role in ROLES if role != "group" and not self.mapping[role]]


def understand(files: list[Path], config: Config | None = None) -> TableCheck:
    """The check of `files` with the mapping of `config`, or with a proposed mapping."""
    settings = config or Config()
    data = settings.data
    forms = [_form(file) for file in files]
    root = paths.as_path(data.image_root or files[0].parent)
    columns, num_rows = _describe_columns(files, root, [] if config else column_roles.folders_beside(root))
    mapping, warnings = _mapping(columns, config)
    image = next((c for c in columns if (c.name,) == mapping["image"]), None)
    found = TableCheck(
        tuple(line for line, _ in forms),
        tuple(word for _, word in forms if word) + warnings,
        num_rows,
        tuple(columns),
        mapping,
        data.image_root or (image.root if image else ""),
        settings.patches.image_size,
        config.patches.network if config else "",
        1.0 if data.validation else data.holdout,
    )
    if not all(mapping[role] for role in ("id", "text", "category")):
        return found
    found = dataclasses.replace(found, **_describe_products(files, as_columns(mapping)))
    return dataclasses.replace(found, pictures=_look(files, found)) if mapping["image"] else found


def as_columns(mapping: dict[str, tuple[str, ...]]) -> Columns:
    single = {role: (*mapping[role], "")[0] for role in ROLES if role != "text"}
    return Columns(text=mapping["text"], **single)


def _form(file: Path) -> tuple[str, str]:
    """(name, size and format of a file, a warning or "")."""
    size = f"{file.name}, {paths.size_and_time(file)[0] / 1e6:.1f} MB"
    binary = {".parquet": "Parquet", fashiongen.SUFFIX: "HDF5 in Fashion-Gen's schema"}
    if file.suffix.lower() in binary:
        return f"{size}: {binary[file.suffix.lower()]}", ""
    form, word = table_readers.form_of(file), ""
    kind = "JSON Lines" if not form.delimiter else f"columns divided by {form.delimiter!r}"
    if form.encoding == "cp1252":
        word = f"{file.name} is not UTF-8: read as cp1252 (Western Windows); if letters look wrong, export it as UTF-8"
    if form.damaged:
        word = f"{file.name} is UTF-8 with some bytes that are not: each becomes \ufffd"
    mark = {"utf-8-sig": "UTF-8 with a byte order mark", "utf-8": "UTF-8"}.get(form.encoding, form.encoding)
    return f"{size}: {kind}, {mark}", word


def _describe_columns(files: list[Path], root: Path, roots: list[Path]) -> tuple[list[Column], int]:
    """All columns of the files, from the first `PROFILED` rows, and the total number of rows."""
    binary = set().union(*map(table_readers.binary_columns, files))
    names = list(dict.fromkeys(name for file in files for name in table_readers.column_names(file)))
    plain, kept, num_rows = set(names) - binary, [], 0
    rows = itertools.chain.from_iterable(table_readers.read_rows(file, plain) for file in files)
    for num_rows, row in enumerate(rows, start=1):
        if num_rows <= PROFILED and isinstance(row, dict):
            kept.append(row)
    sampled = [row for _, _, row in table_readers.sample_rows(files, binary, SAMPLED, num_rows)] if binary else []
    sampled = [row for row in sampled if isinstance(row, dict)]
    cells = {name: [row.get(name) for row in (sampled if name in binary else kept)] for name in names}
    return [column_roles.describe_column(name, cells[name], root, roots) for name in names], num_rows


def _mapping(columns: list[Column], config: Config | None) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The config's mapping, with proposals for missing columns, and warnings; without a config, only proposals."""
    proposed = column_roles.propose(columns)
    if config is None:
        return proposed, ()
    given, there, mapping, warnings = config.data.columns, {column.name for column in columns}, {}, []
    for role in ROLES:
        value = getattr(given, role)
        wanted = tuple(name for name in (value if role == "text" else (value,)) if name)
        absent = [name for name in wanted if name not in there]
        mapping[role] = proposed[role] if absent else wanted
        if absent:
            instead = f"; taken here: {', '.join(proposed[role])}" if proposed[role] else ""
            warnings.append(f"config.data.columns.{role}: there is no column {', '.join(map(repr, absent))}{instead}")
    return mapping, tuple(warnings)


def _describe_products(files: list[Path], columns: Columns) -> dict:
    """Statistics of all rows without their images, as fields of `TableCheck`."""
    skips: dict[str, list] = {}
    categories, groups = collections.Counter(), collections.defaultdict(set)
    words, texts, num_empty_words, of_text = [], [], 0, collections.defaultdict(collections.Counter)
    for _, described, _ in tables.Tables(DataConfig(columns=columns), 0).rows(files, None, images=False):
        if isinstance(described, Skipped):
            _note(skips, described)
            continue
        categories[described.category] += 1
        groups[described.category].add(described.group)
        words.append(described.text.count(" ") + 1)
        num_empty_words += described.text in tables.NOTHING
        texts += [shorten(described.text, 110)] * (len(texts) < 2)
        of_text[hash(described.text)][hash(described.group)] += 1
    return {
        "skips": _listed(skips),
        "num_products": len(words),
        "categories": tuple((name, count, len(groups[name])) for name, count in categories.most_common()),
        "num_groups": len(set().union(*groups.values())),
        "num_repeated": sum(owners.total() for owners in of_text.values() if len(owners) > 1),
        "words": tuple(sorted(words)),
        "texts": tuple(texts),
        "num_empty_words": num_empty_words,
    }


def _look(files: list[Path], found: TableCheck) -> Pictures:
    """Opens the images of a sample of the rows as `prepare` does."""
    columns = as_columns(found.mapping)
    names, skips = set(tables.mapped_columns(columns)), {}
    kinds, sides, tried = collections.Counter(), [], 0
    for file, number, row in table_readers.sample_rows(files, names, SAMPLED, found.num_rows):
        product = tables.describe(row, columns, f"{file.name} row {number}")
        if isinstance(product, Skipped):
            continue
        tried += 1
        root, cell = paths.as_path(found.image_root or file.parent), row.get(columns.image)
        opened = tables.with_image(product, cell, root, found.image_size)
        if isinstance(opened, Skipped):
            _note(skips, opened, cell)
            continue
        with Image.open(io.BytesIO(tables.image_bytes(cell, root))) as image:
            kinds[f"{image.format} {image.mode}"] += 1
            sides.append(min(image.size))
    return Pictures(tried, tuple(kinds.most_common()), tuple(sorted(sides)), _listed(skips))


def _note(skips: dict[str, list], skipped: Skipped, cell=None) -> None:
    name = f", {shorten(cell)!r}" if isinstance(cell, str) else ""
    named = f"{skipped.where}{f' (id {shorten(skipped.id)})' if skipped.id else ''}{name}"
    skips.setdefault(skipped.reason, [0, named])[0] += 1


def _listed(skips: dict[str, list]) -> tuple[Skips, ...]:
    return tuple(Skips(reason, *noted) for reason, noted in sorted(skips.items(), key=lambda item: -item[1][0]))
