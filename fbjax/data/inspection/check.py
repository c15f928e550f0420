"""`fbjax prepare --check`: prints what `understand` found in a table, and the mapping to use."""

import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence

from fbjax.config.load import load_config
from fbjax.config.schema import Config
from fbjax.data.inspection import column_roles
from fbjax.data.inspection.column_roles import ROLES, Column, shorten
from fbjax.data.inspection.obstacles import Obstacle, obstacles
from fbjax.data.inspection.understand import LIST, PROFILED, TableCheck, understand
from fbjax.data.sources import tables
from fbjax.data.text.unknown import measure_unknown
from fbjax.data.text.wordpiece import Vocabulary

DEFAULTS = Config()
FURTHER = {
    tables.FURTHER_PICTURE: "  {count:,} rows of further pictures are not used: the first picture of a product counts",
    tables.FURTHER_ROW: "  {count:,} further rows of products (variants) are not used, such as {example}",
}
RECIPE = "my_catalogue"  # the config of the command that is printed
PLAIN = re.compile(r"[^\W\d][^,]*")  # a column name that needs no quotes in a list of them


def check(
    pattern: str, config: Config | None, say: Callable[[str], None], vocabulary: Vocabulary | None = None
) -> None:
    """Prints the check of a table or glob, and what of its texts `vocabulary` does not know.

    Raises ValueError or OSError if it cannot be read.
    """
    if config and config.data.source != DEFAULTS.data.source:
        raise ValueError(
            f"--check reads product tables; files of data.source {config.data.source!r} are checked row by row by "
            "prepare itself"
        )
    found = understand(tables.Tables((config or DEFAULTS).data, 0).find(pattern), config)
    found_obstacles = list(obstacles(found, config or load_config(RECIPE, ()))) if found.num_products else []
    for line in render(found, pattern, vocabulary, found_obstacles):
        say(line)


def render(
    found: TableCheck, pattern: str, vocabulary: Vocabulary | None = None, in_the_way: Sequence[Obstacle] = ()
) -> Iterator[str]:
    """The lines of the check."""
    yield from found.files[:5]
    if len(found.files) > 5:
        yield f".. and {len(found.files) - 5} files more"
    yield from (f"! {warning}" for warning in found.warnings)
    of = f"the first {PROFILED:,} of " if found.num_rows > PROFILED else ""
    yield f"\n{len(found.columns)} columns, {of}{found.num_rows:,} rows"
    yield from _render_columns(found)
    yield f"\nroles ({'as the config maps them' if found.network else 'proposed from names and content'})"
    for role in ROLES:
        yield f"  {role:<9} {', '.join(found.mapping[role]) or '-'}{_remark(found, role)}"
    if found.num_products or found.skips:
        yield from _render_products(found, vocabulary)
    if found.mapping["image"]:
        yield from _render_pictures(found)
    yield from _render_mapping(found, pattern, in_the_way)


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
    """A remark on the column of a role, or on its absence."""
    column = next((column for column in found.columns if (column.name,) == found.mapping[role][:1]), None)
    if role == "group":
        return f"  {_group_remark(found, column)}"
    if role == "image" and "{" in "".join(found.mapping[role]):
        return "  paths made of cells: a column in braces stands for its cell, :.3 for the first three letters of it"
    if role == "id" and column is None:
        return "  no column has a value of its own on each row: the file's name and the row's number are the id"
    if column is None:
        urls = [c.name for c in found.columns if c.image == "url"] if role == "image" else []
        if urls:
            return f"  {urls[0]} holds URLs, which are not fetched: download the images, add a column of their paths"
        return f"  none: looked for {column_roles.SOUGHT[role]}. {column_roles.REMEDIES[role].capitalize()}"
    if role == "id" and column.num_distinct and column.num_distinct < column.num_filled:
        return f"  {column.num_filled - column.num_distinct:,} rows repeat one: the first of each counts"
    if role == "image" and column.image == "url":
        return "  holds URLs, which are not fetched: download the images, map a column of their paths"
    if role == "image":
        remarks = [f"paths found in {column.root}"] * bool(column.root)
        if not column.root and column.outside:
            remarks = ["paths leave the folder of the images: data.images_outside lets them be read"]
        return "".join(f"  {remark}" for remark in remarks + _further_pictures(found, column))
    return ""


def _group_remark(found: TableCheck, column: Column | None) -> str:
    if column is None:
        against = "".join(f" ({each.column} {each})" for each in found.groupings[:1])
        return f"every product is a group of its own; map a column that joins variants, if there is one{against}"
    return "".join(str(each) for each in found.groupings if each.column == column.name)


def _further_pictures(found: TableCheck, column: Column) -> list[str]:
    """What is said of pictures that are left out."""
    others = [c.name for c in found.columns if c.image in ("bytes", "path") and c.num_filled and c.name != column.name]
    of = f" of {column.num_rows:,} looked at" if column.num_rows < found.num_products else ""
    said = [f"{column.num_several:,} products{of} have more than one picture: the first that is there counts"]
    return said * bool(column.num_several) + [f"pictures of {', '.join(others)} are not used"] * bool(others)


def _render_products(found: TableCheck, vocabulary: Vocabulary | None) -> Iterator[str]:
    yield f"\nrows that can be used, images aside: {found.num_products:,} of {found.num_rows:,}"
    for skip in found.skips:
        yield FURTHER.get(skip.reason, "  skipped: {count:,} {reason}, such as {example}").format(**vars(skip))
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
        yield f"  {small:,} of a single group: no negative of the same category, any other stands in"
    if short:
        held = f" (validating on {found.holdout:.0%}, so do those of under {LIST / found.holdout:,.0f})"
        held = held if found.holdout < 1 else ""
        yield f"  {short:,} of fewer than {LIST} products: they give shorter candidate lists{held}"
    if found.num_repeated:
        yield f"! {found.num_repeated:,} products share their text with one of another group: if they are variants,"
        yield "  map a column that joins them as `group`, or they are trained and ranked against each other"
    middle, long = found.words
    yield f"\ntexts: {middle:.0f} words in the middle, 95 % have at most {long:.0f}"
    yield from (f"  {shorten(text, 110)}" for text in found.texts[:2])
    if vocabulary and found.texts:
        unknown = measure_unknown(vocabulary, found.texts)
        yield f"  {unknown}"
        if unknown.too_many:
            yield "! train will refuse these texts: config.model.vocabulary=train:8000 makes a vocabulary of them"
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
        if found.network:
            under = sum(side < found.image_size for side in pictures.sides)
            too_large = found.network == "pixels" and middle < found.image_size
            smaller = ": a smaller one loses nothing" if too_large else ""
            yield f"  {under} are under patches.image_size {found.image_size}{smaller}"
    for skip in pictures.skips:
        share = skip.count / pictures.num_tried
        yield f"  skipped: {skip.count} {skip.reason} ({share:.1%} of the sample), such as {skip.example}"


def _render_mapping(found: TableCheck, pattern: str, in_the_way: Sequence[Obstacle]) -> Iterator[str]:
    if in_the_way:
        yield "\nin the way of training"
        for each in in_the_way:
            yield f"! {f'{each.flag}: ' if each.flag else ''}{each.message}"
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
    if found.images_outside:
        yield "  config.data.images_outside = True"
        flags.append("--config.data.images_outside=true")
    flags += [f"--{each.flag}" for each in in_the_way if each.flag]
    yield "and as a command"
    yield " \\\n    ".join([f"  fbjax train --config {RECIPE} --workdir runs/mine", *flags])


def _quoted(value: str | tuple[str, ...]) -> str:
    """A value as ruff formats it."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_quoted, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value) if '"' in value or "\\" in value else f'"{value}"'
