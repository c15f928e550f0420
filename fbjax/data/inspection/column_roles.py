"""Proposes the role of each column of an unknown table from its name, in several languages, and from its cells.

All roles but the group's, which depends on what rows share: `grouping`.
"""

import dataclasses
import itertools
import os.path
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fbjax.data.inspection.column_names import is_attribute, name_score
from fbjax.data.sources.cells import clean_name, clean_text, plain_text
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.pictures import IMAGE_NAME, image_bytes, is_url, pictures_of
from fbjax.data.sources.tables import MAX_NAME
from fbjax.data.text.scripts import num_words

ROLES = ("id", "text", "category", "image", "group")
SOUGHT = {
    "id": "a column whose values are all different",
    "text": "a column of words, such as a title or a description",
    "category": "a column of few values, each on many rows",
    "image": "a column of embedded images or of paths of image files",
    "group": "a column that joins the variants of one product",
}
REMEDIES = {
    "id": "",
    "text": "add the products' names to the table",
    "category": "add one (the kind of product, say); negative pairs and candidates come from the same category",
    "image": "add the path of one image file a product, relative to the table",
    "group": "",
}
ROUNDED = re.compile(r"-?\d(\.\d+)?E\+\d+", re.IGNORECASE)  # a long number as a spreadsheet exports it
EXACT = 2**53  # above it a float skips integers
MANY = 20  # rows of one value; an id repeats on fewer
NUM_TRIED = 40  # image cells of a column that are read
MAX_FOLDERS = 100  # folders next to a table that are searched for images


@dataclasses.dataclass(frozen=True)
class Column:
    """Statistics of a column; shares are of its filled cells."""

    name: str
    num_rows: int
    num_filled: int
    num_distinct: int | None  # None: bytes, not counted
    words: float  # mean
    lettered: float  # share with a letter
    longest: int  # characters
    image: str = ""  # bytes | path | url: what most cells are
    found: float = 0.0  # share of the tried image cells that are readable
    root: str = ""  # the folder of the images, if it is not the one that was tried first
    outside: bool = False  # whether most images are found, but outside that folder
    num_several: int = 0  # cells with more than one picture
    num_runs: int = 0  # stretches of rows with one value
    num_rounded: int = 0  # numbers that have lost digits, or may have
    examples: tuple[str, ...] = ()

    @property
    def filled(self) -> float:
        return self.num_filled / max(self.num_rows, 1)

    @property
    def rows_a_value(self) -> float:
        return self.num_filled / self.num_distinct if self.num_distinct else 0.0


def describe_column(name: str, cells: Iterable, folder: ImageFolder, roots: list[Path] = ()) -> Column:
    """Describes a column; tries image paths in `folder`, then in each of `roots`, then outside `folder`."""
    num_rows = filled = words = lettered = longest = num_paths = num_urls = several = runs = rounded = 0
    distinct, examples, tried, holds_bytes, homes, before = set(), [], [], False, set(), ""
    for cell in cells:
        num_rows += 1
        if is_embedded(cell):
            filled, holds_bytes = filled + 1, True
            tried += [cell] * (len(tried) < NUM_TRIED)
            several += len(pictures_of(cell)) > 1
            continue
        text = clean_name(plain_text(cell) if isinstance(cell, str) else cell)
        runs, before = runs + (text != before), text
        if not text:
            continue
        filled += 1
        words += num_words(text)
        longest = max(longest, len(text))
        lettered += any(map(str.isalpha, text[:200]))
        if hash(text) not in distinct:
            distinct.add(hash(text))
            examples += [text] * (len(examples) < 3)
        rounded += ROUNDED.fullmatch(text) is not None or isinstance(cell, float) and abs(cell) > EXACT
        if not (text[0] == "[" or is_url(text) or IMAGE_NAME.match(text)):
            continue
        pictures = pictures_of(cell)
        several += len(pictures) > 1
        if is_url(str(pictures[0])):
            num_urls += 1
        elif IMAGE_NAME.match(str(pictures[0])):
            num_paths += 1
            homes.add(os.path.dirname(text.removeprefix("file://")))
            tried += [cell] * (len(tried) < NUM_TRIED)
    share = max(filled, 1)
    num_distinct, image, found, elsewhere, outside = len(distinct), "", 0.0, "", False
    if holds_bytes:
        num_distinct, image, found = None, "bytes", _readable(tried, folder)
    elif num_urls > share / 2:
        image = "url"
    elif num_paths > share / 2:
        image, best, found = "path", *_best_folder(tried, folder, [*_common(homes), *roots])
        elsewhere = str(best.root) if best.root != folder.root else ""
        outside = best.outside
    about = num_rows, filled, num_distinct, words / share, lettered / share, longest
    counts = several, runs, rounded
    return Column(name, *about, image, found, elsewhere, outside, *counts, tuple(examples))


def is_embedded(cell) -> bool:
    """Whether a cell contains an image itself: pixels, bytes, a struct with bytes, or a list of these."""
    if isinstance(cell, list):
        return any(map(is_embedded, cell))
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return isinstance(content, np.ndarray) or isinstance(content, bytes) and content != b""


def folders_beside(folder: Path) -> list[Path]:
    """The first `MAX_FOLDERS` folders in `folder`, then those in them."""
    try:
        outer = sorted(path for path in folder.iterdir() if path.is_dir())[:MAX_FOLDERS]
        inner = (path for top in outer for path in itertools.islice(top.iterdir(), 500) if path.is_dir())
        return [*outer, *inner][:MAX_FOLDERS]
    except OSError:
        return []


def propose(columns: list[Column]) -> dict[str, tuple[str, ...]]:
    """{role: columns}: one or two for `text`, at most one for the others; () if no column fits, and for `group`."""
    taken: set[str] = set()

    def best(fits, score):
        able = [column for column in columns if column.name not in taken and fits(column)]
        chosen = max(able, key=score, default=None)
        taken.update([chosen.name] if chosen else [])
        return (chosen.name,) if chosen else ()

    def known(role):
        return lambda column: name_score(role, column.name)

    def id_score(c):
        distinct, score = _distinct_share(c), name_score("id", c.name)
        return distinct > 0.98 and score > 0, distinct * c.filled > 0.9, score, -c.words

    def is_wordy(c):
        return not c.image and c.lettered > 0.5 and c.filled > 0.2 and c.num_distinct > 1

    proposed = {}  # in this order: a column takes one role only
    proposed["image"] = best(
        lambda c: c.image in ("bytes", "path") and c.num_filled,
        lambda c: (c.found > 0.5, c.image == "bytes", name_score("image", c.name), c.found),
    )
    proposed["id"] = best(lambda c: could_identify(c) and (_distinct_share(c) > 0.98 or _may_repeat(c)), id_score)
    proposed["category"] = best(
        _could_categorise, lambda c: (name_score("category", c.name), c.lettered > 0.5, -c.words, c.num_distinct)
    )
    titles = best(
        lambda c: is_wordy(c) and (name_score("title", c.name) or c.words >= 2),
        lambda c: (name_score("title", c.name), name_score("more", c.name), min(c.num_distinct, 1000), -c.words),
    )
    more = best(lambda c: is_wordy(c) and name_score("more", c.name), known("more")) if titles else ()
    return {role: (proposed | {"text": titles + more, "group": ()})[role] for role in ROLES}


def joining(columns: list[Column]) -> str:
    """The column whose value the rows of a product share, if the further ones lack its text, as Shopify's; or ""."""

    texts = [c.num_filled for c in columns if c.words >= 2 and c.lettered > 0.5 and not c.image and 0 < c.filled < 1]

    def joins(c):
        repeats = could_identify(c) and c.filled == 1 and c.num_runs == c.num_distinct < c.num_rows
        return repeats and may_name_ids(c.name) and any(0.9 * c.num_distinct <= n <= c.num_distinct for n in texts)

    best = max(filter(joins, columns), key=lambda c: name_score("id", c.name), default=None)
    return best.name if best else ""


def may_name_ids(name: str) -> bool:
    return name_score("id", name) > 0


def _may_repeat(column: Column) -> bool:
    """Whether a column may be the id though some rows repeat a value."""
    return name_score("id", column.name) >= 1 and column.rows_a_value < MANY and not column.num_rounded


def could_identify(column: Column) -> bool:
    """Whether the cells may be ids of products or of groups."""
    short = column.words < 3 and column.longest <= MAX_NAME
    return not column.image and bool(column.num_distinct) and short and not name_score("title", column.name)


def _could_categorise(column: Column) -> bool:
    score = name_score("category", column.name)
    few = column.num_distinct and 2 <= column.num_distinct and column.rows_a_value >= (1.5 if score else 4)
    named = score >= 1 or score and not is_attribute(column.name)
    other = is_attribute(column.name) or column.lettered < 0.5 or column.words > 5
    return bool(few) and not column.image and (named or not other) and column.longest <= MAX_NAME


def _distinct_share(column: Column) -> float:
    return (column.num_distinct or 0) / max(column.num_filled, 1)


def _best_folder(cells: list, folder: ImageFolder, roots: list[Path]) -> tuple[ImageFolder, float]:
    """`folder`, or the first of `roots` in which more cells can be read, and their share; or outside `folder`."""
    shares = {place: _readable(cells, place) for place in (folder, *map(ImageFolder, roots))}
    best = max(shares, key=shares.get)
    if shares[best] <= 0.5:
        anywhere = dataclasses.replace(folder, outside=True)
        shares[anywhere] = _readable(cells, anywhere)
        best = max(shares, key=shares.get)
    return best, shares[best]


def _common(homes: set[str]) -> list[Path]:
    """The folder that contains all of the absolute folders `homes`, if there is one below the file system's root."""
    homes = {home for home in homes if os.path.isabs(home)}
    common = Path(os.path.commonpath(homes)) if homes else Path()
    return [common] if common.name else []


def _readable(cells: list, folder: ImageFolder) -> float:
    """The share of image cells whose bytes can be read."""
    found = 0
    for cell in cells:
        try:
            found += bool(image_bytes(cell, folder))
        except (ValueError, OSError):
            continue
    return found / max(len(cells), 1)


def shorten(text: str, width: int = 48) -> str:
    """One printable line of a cell."""
    line = "".join(letter if letter.isprintable() else "?" for letter in clean_text(text[: 4 * width]))
    return line if len(line) <= width else line[: width - 2] + ".."
