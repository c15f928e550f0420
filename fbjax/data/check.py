"""`fbjax prepare --check`: what a product table holds, which columns could take which role, and what would be skipped.

Reads as `prepare` does and writes nothing. All rows are read, but only a sample of the images is opened.
"""

import collections
import dataclasses
import io
import itertools
import re
import shlex
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from fbjax import places
from fbjax.config import Columns, Config
from fbjax.data import fashiongen, roles, rows, table
from fbjax.data.roles import Column, shorten

PROFILED = 100_000  # rows from which columns are described
SAMPLED = 200  # rows of which the image is opened
LIST = 101  # products in a full candidate list: the true one and 100 others
DEFAULTS = Config()
PLAIN = re.compile(r"[^\W\d][^,]*")  # a column name that needs no quotes in a list of them


@dataclasses.dataclass(frozen=True)
class Skips:
    """Rows that prepare would leave out for one reason."""

    reason: str
    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a sample of the rows has for images."""

    num_tried: int = 0
    kinds: tuple[tuple[str, int], ...] = ()  # (format and mode, count)
    sides: tuple[int, ...] = ()  # the shorter side of each, sorted
    skips: tuple[Skips, ...] = ()


@dataclasses.dataclass(frozen=True)
class TableCheck:
    files: tuple[str, ...]  # each with its form
    warnings: tuple[str, ...]
    num_rows: int
    columns: tuple[Column, ...]
    mapping: dict[str, tuple[str, ...]]  # role -> columns; () where none can take it
    image_root: str
    image_size: int
    from_config: bool
    holdout: float  # share of the groups that validation gets, 1.0 where it has a table of its own
    skips: tuple[Skips, ...] = ()
    num_products: int = 0
    categories: tuple[tuple[str, int, int], ...] = ()  # (name, products, groups), the largest first
    num_groups: int = 0
    num_repeated: int = 0  # products whose text another group's product has as well
    words: tuple[int, ...] = ()  # a text, sorted
    texts: tuple[str, ...] = ()
    num_empty_words: int = 0  # text cells that only say "nan" or the like
    pictures: Pictures = Pictures()

    @property
    def missing(self) -> list[str]:
        return [role for role in roles.ROLES if role != "group" and not self.mapping[role]]


def check(pattern: str, config: Config | None, say: Callable[[str], None]) -> None:
    """Says what is understood of a table or glob. Raises ValueError or OSError where it cannot be read at all."""
    if config and config.patches.ready_made:
        raise ValueError("--check reads product tables; a file of the release is checked row by row by prepare itself")
    found = understand(table.find_files(pattern, (config or DEFAULTS).data.manual_dir), config)
    for line in render(found, pattern):
        say(line)


def understand(files: list[Path], config: Config | None = None) -> TableCheck:
    """Everything that is said of `files`, by the mapping of `config` or by one proposed."""
    data = (config or DEFAULTS).data
    forms = [_form(file) for file in files]
    root = places.place(data.image_root or files[0].parent)
    columns, num_rows = _describe_columns(files, root, [] if config else roles.folders_beside(root))
    mapping, warnings = _mapping(columns, config)
    image = next((c for c in columns if (c.name,) == mapping["image"]), None)
    found = TableCheck(
        tuple(line for line, _ in forms),
        tuple(word for _, word in forms if word) + warnings,
        num_rows,
        tuple(columns),
        mapping,
        data.image_root or (image.root if image else ""),
        (config or DEFAULTS).patches.image_size,
        config is not None,
        1.0 if data.validation else data.holdout,
    )
    if not all(mapping[role] for role in ("id", "text", "category")):
        return found
    found = dataclasses.replace(found, **_describe_products(files, as_columns(mapping)))
    return dataclasses.replace(found, pictures=_look(files, found)) if mapping["image"] else found


def as_columns(mapping: dict[str, tuple[str, ...]]) -> Columns:
    single = {role: (*mapping[role], "")[0] for role in roles.ROLES if role != "text"}
    return Columns(text=mapping["text"], **single)


def _form(file: Path) -> tuple[str, str]:
    """(name and form, a word of warning or "")."""
    size = f"{file.name}, {places.size_and_time(file)[0] / 1e6:.1f} MB"
    if file.suffix.lower() == ".parquet":
        return f"{size}: Parquet", ""
    if file.suffix.lower() == fashiongen.SUFFIX:
        return f"{size}: HDF5 in Fashion-Gen's schema", ""
    form, word = rows.form_of(file), ""
    kind = "JSON Lines" if not form.delimiter else f"columns divided by {form.delimiter!r}"
    if form.encoding == "cp1252":
        word = f"{file.name} is not UTF-8: read as cp1252 (Western Windows); if letters look wrong, export it as UTF-8"
    if form.damaged:
        word = f"{file.name} is UTF-8 with some bytes that are not: each becomes \ufffd"
    mark = {"utf-8-sig": "UTF-8 with a byte order mark", "utf-8": "UTF-8"}.get(form.encoding, form.encoding)
    return f"{size}: {kind}, {mark}", word


def _describe_columns(files: list[Path], root: Path, roots: list[Path]) -> tuple[list[Column], int]:
    """Every column of any of the files, from the first `PROFILED` rows, and the number of rows in all."""
    binary = set().union(*map(rows.binary_columns, files))
    names = list(dict.fromkeys(name for file in files for name in rows.column_names(file)))
    plain, kept, num_rows = set(names) - binary, [], 0
    for row in itertools.chain.from_iterable(rows.read_rows(file, plain) for file in files):
        num_rows += 1
        if num_rows <= PROFILED and isinstance(row, dict):
            kept.append(row)
    sampled = [row for _, _, row in rows.sample_rows(files, binary, SAMPLED, num_rows)] if binary else []
    columns = []
    for name in names:
        source = sampled if name in binary else kept
        cells = (row.get(name) for row in source if isinstance(row, dict))
        columns.append(roles.describe_column(name, cells, root, roots))
    return columns, num_rows


def _mapping(columns: list[Column], config: Config | None) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The config's mapping, proposals in place of what is not there, or a mapping proposed throughout."""
    proposed = roles.propose(columns)
    if config is None:
        return proposed, ()
    given, there, mapping, warnings = config.data.columns, {column.name for column in columns}, {}, []
    for role in roles.ROLES:
        value = getattr(given, role)
        wanted = tuple(name for name in (value if role == "text" else (value,)) if name)
        absent = [name for name in wanted if name not in there]
        mapping[role] = proposed[role] if absent else wanted
        if absent:
            instead = f"; taken here: {', '.join(proposed[role])}" if proposed[role] else ""
            warnings.append(f"config.data.columns.{role}: there is no column {', '.join(map(repr, absent))}{instead}")
    return mapping, tuple(warnings)


def _describe_products(files: list[Path], columns: Columns) -> dict:
    """What all rows but their images come to, as fields of `TableCheck`."""
    skips: dict[str, list] = {}
    categories, groups = collections.Counter(), collections.defaultdict(set)
    words, texts, of_text = [], [], collections.defaultdict(set)
    text_counts, num_empty_words = collections.Counter(), 0
    for described, _, _ in table.describe_rows(files, columns, images=False):
        if isinstance(described, table.Skipped):
            _note(skips, described)
            continue
        categories[described.category] += 1
        groups[described.category].add(described.group)
        words.append(described.text.count(" ") + 1)
        num_empty_words += described.text in table.NOTHING
        texts += [shorten(described.text, 110)] * (len(texts) < 2)
        of_text[hash(described.text)].add(hash(described.group))
        text_counts[hash(described.text)] += 1
    return {
        "skips": _listed(skips),
        "num_products": len(words),
        "categories": tuple((name, count, len(groups[name])) for name, count in categories.most_common()),
        "num_groups": len(set().union(*groups.values())),
        "num_repeated": sum(text_counts[text] for text, owners in of_text.items() if len(owners) > 1),
        "words": tuple(sorted(words)),
        "texts": tuple(texts),
        "num_empty_words": num_empty_words,
    }


def _look(files: list[Path], found: TableCheck) -> Pictures:
    """Opens the images of a sample of the rows, as `prepare` opens all."""
    columns = as_columns(found.mapping)
    names, skips = set(table.mapped_columns(columns)), {}
    kinds, sides, tried = collections.Counter(), [], 0
    for file, number, row in rows.sample_rows(files, names, SAMPLED, found.num_rows):
        product = table.describe(row, columns, f"{file.name} row {number}")
        if isinstance(product, table.Skipped):
            continue
        tried += 1
        root, cell = places.place(found.image_root or file.parent), row.get(columns.image)
        opened = table.with_image(product, cell, root, found.image_size)
        if isinstance(opened, table.Skipped):
            _note(skips, opened, cell)
            continue
        with Image.open(io.BytesIO(table.image_bytes(cell, root))) as image:
            kinds[f"{image.format} {image.mode}"] += 1
            sides.append(min(image.size))
    return Pictures(tried, tuple(kinds.most_common()), tuple(sorted(sides)), _listed(skips))


def _note(skips: dict[str, list], skipped: table.Skipped, cell=None) -> None:
    name = f", {shorten(cell)!r}" if isinstance(cell, str) else ""
    named = f"{skipped.where}{f' (id {shorten(skipped.id)})' if skipped.id else ''}{name}"
    skips.setdefault(skipped.reason, [0, named])[0] += 1


def _listed(skips: dict[str, list]) -> tuple[Skips, ...]:
    return tuple(Skips(reason, *noted) for reason, noted in sorted(skips.items(), key=lambda item: -item[1][0]))


def render(found: TableCheck, pattern: str) -> Iterator[str]:
    """The lines that a person reads."""
    yield from found.files[:5]
    if len(found.files) > 5:
        yield f".. and {len(found.files) - 5} files more"
    yield from (f"! {warning}" for warning in found.warnings)
    of = f"the first {PROFILED:,} of " if found.num_rows > PROFILED else ""
    yield f"\n{len(found.columns)} columns, {of}{found.num_rows:,} rows"
    yield from _render_columns(found)
    yield f"\nroles ({'as the config maps them' if found.from_config else 'proposed from names and content'})"
    for role in roles.ROLES:
        yield f"  {role:<9} {', '.join(found.mapping[role]) or '-'}{_remark(found, role)}"
    if found.num_products or found.skips:
        yield from _render_products(found)
    if found.mapping["image"]:
        yield from _render_pictures(found)
    yield from _render_mapping(found, pattern)


def _render_columns(found: TableCheck) -> Iterator[str]:
    width = min(30, max([6, *(len(shorten(column.name, 30)) for column in found.columns)]))
    yield f"  {'column':<{width}}  filled  distinct  words  examples"
    taken = {name: role for role, names in found.mapping.items() for name in names}
    for column in found.columns:
        distinct = "-" if column.num_distinct is None else f"{column.num_distinct:,}"
        what = " | ".join(shorten(example, 36) for example in column.examples[:2])
        what = {"bytes": "(embedded images)", "url": f"(URLs) {what}"}.get(column.image, what)
        filled = f"{column.filled:.1%}" if 0 < column.filled < 1 else f"{column.filled:.0%}"
        role = f"  <- {taken[column.name]}" if column.name in taken else ""
        yield f"  {shorten(column.name, 30):<{width}}  {filled:>6}  {distinct:>8}  {column.words:>5.1f}  {what}{role}"


def _remark(found: TableCheck, role: str) -> str:
    """What is to be known of the column that takes a role, or of there being none."""
    column = next((column for column in found.columns if (column.name,) == found.mapping[role][:1]), None)
    if role == "group" and column is None:
        return "  every product is a group of its own; map a column that joins variants, if there is one"
    if column is None:
        urls = [c.name for c in found.columns if c.image == "url"] if role == "image" else []
        if urls:
            return f"  {urls[0]} holds URLs, which are not fetched: download the images, add a column of their paths"
        return f"  none: looked for {roles.SOUGHT[role]}. {roles.REMEDIES[role].capitalize()}"
    if role == "id" and column.num_distinct and column.num_distinct < column.num_filled:
        return f"  {column.num_filled - column.num_distinct:,} rows repeat one: the first of each counts"
    if role == "image" and column.image == "url":
        return "  holds URLs, which are not fetched: download the images, map a column of their paths"
    if role == "image" and column.root and found.image_root:
        return f"  paths found in {found.image_root}"
    return ""


def _render_products(found: TableCheck) -> Iterator[str]:
    yield f"\nrows that can be used, images aside: {found.num_products:,} of {found.num_rows:,}"
    for skip in found.skips:
        yield f"  skipped: {skip.count:,} {skip.reason}, such as {skip.example}"
    if not found.num_products:
        return
    small = sum(num_groups < 2 for _, _, num_groups in found.categories)
    short = sum(count < LIST for _, count, _ in found.categories)
    yield f"\n{len(found.categories):,} categories, {found.num_groups:,} groups"
    for name, count, num_groups in found.categories[:10]:
        yield f"  {count:>7,}  {shorten(name)}" + (f"  ({num_groups:,} groups)" if num_groups < count else "")
    if len(found.categories) > 10:
        yield f"  .. and {len(found.categories) - 10:,} more"
    if small:
        yield f"  {small:,} of a single group: no mismatched partner of the same category, any other stands in"
    if short:
        held = (
            f" (validating on {found.holdout:.0%}, so do those of under {LIST / found.holdout:,.0f})"
            if found.holdout < 1
            else ""
        )
        yield f"  {short:,} of fewer than {LIST} products: they give shorter candidate lists{held}"
    if found.num_repeated:
        yield f"! {found.num_repeated:,} products share their text with one of another group: if they are variants,"
        yield "  map a column that joins them as `group`, or they are trained and ranked against each other"
    middle, long = statistics.median(found.words), found.words[int(0.95 * (len(found.words) - 1))]
    yield f"\ntexts: {middle:.0f} words in the middle, 95 % have at most {long}"
    yield from (f"  {text}" for text in found.texts)
    if found.num_empty_words:
        yield f'! {found.num_empty_words:,} texts say only "nan" or the like: export missing values as empty cells'


def _render_pictures(found: TableCheck) -> Iterator[str]:
    pictures = found.pictures
    if not pictures.num_tried:
        return
    yield f"\nimages: a sample of {pictures.num_tried} rows, spread over the table"
    if pictures.kinds:
        yield "  " + ", ".join(f"{count} {kind}" for kind, count in pictures.kinds[:8])
        middle = statistics.median(pictures.sides)
        yield f"  shorter side {pictures.sides[0]} to {pictures.sides[-1]} pixels, {middle:.0f} in the middle"
        if found.from_config:
            under = sum(side < found.image_size for side in pictures.sides)
            smaller = ": a smaller one loses nothing" if middle < found.image_size else ""
            yield f"  {under} are under patches.image_size {found.image_size}{smaller}"
    for skip in pictures.skips:
        share = skip.count / pictures.num_tried
        yield f"  skipped: {skip.count} {skip.reason} ({share:.1%} of the sample), such as {skip.example}"


def _render_mapping(found: TableCheck, pattern: str) -> Iterator[str]:
    if found.missing:
        yield f"\nno training yet: no column for {', '.join(found.missing)} (see above)"
        return
    flags = [f"--config.data.train={shlex.quote(pattern)}"]
    yield "\nthe mapping as config lines"
    for role, names in found.mapping.items():
        value = names if role == "text" else (*names, "")[0]
        yield f"  config.data.columns.{role} = {_quoted(value)}"
        text = value if role != "text" else ",".join(names) if all(map(PLAIN.fullmatch, names)) else repr(names)
        if value != getattr(DEFAULTS.data.columns, role):
            flags.append(f"--config.data.columns.{role}={shlex.quote(text)}")
    if found.image_root:
        yield f"  config.data.image_root = {_quoted(found.image_root)}"
        flags.append(f"--config.data.image_root={shlex.quote(found.image_root)}")
    yield "and as a command"
    yield " \\\n    ".join(["  fbjax train --config configs/my_catalogue.py --workdir runs/mine", *flags])


def _quoted(value: str | tuple[str, ...]) -> str:
    """As ruff would write it."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_quoted, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value) if '"' in value or "\\" in value else f'"{value}"'
