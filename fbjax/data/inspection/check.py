"""`fbjax prepare --check`: prints what `understand` found in a table, and the mapping to use."""

import re
import shlex
import statistics
from collections.abc import Callable, Iterator

from fbjax.config.schema import Config
from fbjax.data.inspection import column_roles
from fbjax.data.inspection.column_roles import ROLES, shorten
from fbjax.data.inspection.understand import LIST, PROFILED, TableCheck, understand
from fbjax.data.sources import tables

DEFAULTS = Config()
PLAIN = re.compile(r"[^\W\d][^,]*")  # a column name that needs no quotes in a list of them


def check(pattern: str, config: Config | None, say: Callable[[str], None]) -> None:
    """Prints the check of a table or glob. Raises ValueError or OSError if it cannot be read."""
    if config and config.data.source != DEFAULTS.data.source:
        raise ValueError(
            f"--check reads product tables; files of data.source {config.data.source!r} are checked row by row by "
            "prepare itself"
        )
    for line in render(understand(tables.Tables((config or DEFAULTS).data, 0).find(pattern), config), pattern):
        say(line)


def render(found: TableCheck, pattern: str) -> Iterator[str]:
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
    """A remark on the column of a role, or on its absence."""
    column = next((column for column in found.columns if (column.name,) == found.mapping[role][:1]), None)
    if role == "group" and column is None:
        return "  every product is a group of its own; map a column that joins variants, if there is one"
    if column is None:
        urls = [c.name for c in found.columns if c.image == "url"] if role == "image" else []
        if urls:
            return f"  {urls[0]} holds URLs, which are not fetched: download the images, add a column of their paths"
        return f"  none: looked for {column_roles.SOUGHT[role]}. {column_roles.REMEDIES[role].capitalize()}"
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
        yield f"  {small:,} of a single group: no negative of the same category, any other stands in"
    if short:
        held = f" (validating on {found.holdout:.0%}, so do those of under {LIST / found.holdout:,.0f})"
        held = held if found.holdout < 1 else ""
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
        if found.network:
            under = sum(side < found.image_size for side in pictures.sides)
            too_large = found.network == "pixels" and middle < found.image_size
            smaller = ": a smaller one loses nothing" if too_large else ""
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
    yield " \\\n    ".join(["  fbjax train --config my_catalogue --workdir runs/mine", *flags])


def _quoted(value: str | tuple[str, ...]) -> str:
    """A value as ruff formats it."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_quoted, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value) if '"' in value or "\\" in value else f'"{value}"'
