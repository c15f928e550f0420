"""Proposes the column that joins the variants of one product, by what its rows share; its name is a help only.

A group has few rows of one category. Its texts are more alike than others of that category, and a text that several
rows have lies within one group. A colour or an age joins rows of many categories.
"""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence

from fbjax.data.inspection.column_names import is_attribute, name_score
from fbjax.data.inspection.column_roles import Column, could_identify
from fbjax.data.sources.cells import clean_name, clean_text
from fbjax.data.sources.pictures import is_url

MOST_ROWS = 50  # a value, on average
NUM_PAIRS = 2000  # of rows that are compared
FEW_PAIRS = 30  # prove nothing
SHARED_BY_MANY = 50  # rows with one text or picture: a filler, such as "no description"
ONE_CATEGORY, ALIKE, NOT_ALIKE, REPEATED = 0.9, 0.3, 0.05, 0.5


@dataclasses.dataclass(frozen=True)
class Grouping:
    """What speaks for or against a column as the group."""

    column: str
    rows_a_value: float
    one_category: float  # share of the rows that are of their group's main category
    alike: float  # of texts in a group: 0 as others of their category, 1 the same
    num_pairs: int  # that `alike` compares
    repeated: float | None  # share of the rows with a repeated text or picture whose copies are all in their group
    codes: float  # share of cells with a digit

    def __str__(self) -> str:
        joins = f"joins {self.rows_a_value:.1f} rows a value"
        if self.one_category < ONE_CATEGORY:
            return f"{joins}, of several categories: {1 - self.one_category:.0%} are not of their group's main one"
        if self.repeated is None:
            return f"{joins}; no text is repeated"
        return f"{joins}; {self.repeated:.0%} of repeated texts are inside one group"

    @property
    def is_named(self) -> bool:
        return name_score("group", self.column) >= 1

    @property
    def fits(self) -> bool:
        explains = self.repeated is None or self.repeated >= REPEATED
        if self.one_category < ONE_CATEGORY:
            return False
        if self.is_named:
            return self.alike > NOT_ALIKE or self.num_pairs < FEW_PAIRS or bool(self.repeated and explains)
        return self.alike >= ALIKE and self.num_pairs >= FEW_PAIRS and explains and self.codes > ONE_CATEGORY

    @property
    def weight(self) -> float:
        return self.is_named / 2 + self.alike + (0.5 if self.repeated is None else self.repeated)


def propose_group(
    columns: Sequence[Column], rows: Sequence[dict], mapping: dict[str, tuple[str, ...]]
) -> list[Grouping]:
    """The columns that may be the group, the best that fits first; then those with a group's name that do not fit."""
    if not (mapping["text"] and mapping["category"]):
        return []
    taken = set(itertools.chain.from_iterable(mapping.values()))
    rows = _Rows(rows, columns, mapping)
    found = [rows.grouping(column) for column in columns if column.name not in taken and _could_group(column, rows)]
    fitting = sorted((each for each in found if each.fits), key=lambda each: -each.weight)
    return fitting + [each for each in found if not each.fits and each.is_named]


def _could_group(column: Column, rows: "_Rows") -> bool:
    if not could_identify(column) or column.filled <= 0.2 or not 1 < column.rows_a_value < MOST_ROWS:
        return False
    if name_score("group", column.name) >= 1:
        return column.num_distinct > 1
    return column.num_distinct >= 2 * rows.num_categories and column.words < 1.5 and not is_attribute(column.name)


class _Rows:
    """The texts, pictures and categories of the rows of a table."""

    def __init__(self, rows: Sequence[dict], columns: Sequence[Column], mapping: dict[str, tuple[str, ...]]):
        pictures = [column.name for column in columns if column.image in ("path", "url")]
        self._cells = rows
        self._texts = [" ".join(clean_text(row.get(name)) for name in mapping["text"]) for row in rows]
        self._pictures = [tuple(_picture(row.get(name)) for name in pictures) for row in rows]
        (category,) = mapping["category"]
        self._categories = [clean_name(row.get(category)) for row in rows]
        self.num_categories = len(set(self._categories))

    def grouping(self, column: Column) -> Grouping:
        cells = [clean_name(row.get(column.name)) for row in self._cells]
        members = _places(cells)
        joined = [places for value, places in members.items() if value and len(places) > 1]
        main = sum(max(collections.Counter(self._categories[row] for row in places).values()) for places in joined)
        pairs = _some(pair for places in joined for pair in itertools.pairwise(places))
        within, outside = self._alikeness(pairs), self._alikeness(self._others(cells))
        return Grouping(
            column.name,
            column.rows_a_value,
            main / max(sum(map(len, joined)), 1),
            (within - outside) / (1 - outside) if outside < 0.999 else 0.0,
            len(pairs),
            self._repeated(cells),
            sum(any(map(str.isdecimal, cell)) for cell in cells if cell) / max(column.num_filled, 1),
        )

    def _others(self, cells: list[str]) -> list[tuple[int, int]]:
        """Pairs of one category and different groups."""
        rows = list(range(len(cells)))
        random.Random(0).shuffle(rows)
        by_category = _places([self._categories[row] for row in rows])
        pairs = (pair for places in by_category.values() for pair in itertools.pairwise(places))
        pairs = ((rows[first], rows[second]) for first, second in pairs)
        return _some(pair for pair in pairs if not cells[pair[0]] or cells[pair[0]] != cells[pair[1]])

    def _alikeness(self, pairs: list[tuple[int, int]]) -> float:
        """The mean share of pairs of letters that two texts have in common; 1 where they show one picture."""
        total = 0.0
        for first, second in pairs:
            one, other = _letter_pairs(self._texts[first]), _letter_pairs(self._texts[second])
            same_picture = any(a and a == b for a, b in zip(self._pictures[first], self._pictures[second], strict=True))
            total += 1.0 if same_picture else len(one & other) / max(len(one | other), 1)
        return total / max(len(pairs), 1)

    def _repeated(self, cells: list[str]) -> float | None:
        inside = total = 0
        for keys in (self._texts, *map(list, zip(*self._pictures, strict=True))):
            for key, places in _places(keys).items():
                if key and 1 < len(places) < SHARED_BY_MANY:
                    total += len(places)
                    values = {cells[row] for row in places}
                    inside += len(places) if len(values) == 1 and values != {""} else 0
        return inside / total if total else None


def _picture(cell) -> str:
    name = clean_text(cell) if isinstance(cell, str) else ""
    return name.split("?")[0] if is_url(name) else name


def _places(keys: Sequence) -> dict:
    """{key: its places, ascending}"""
    found = collections.defaultdict(list)
    for place, key in enumerate(keys):
        found[key].append(place)
    return found


def _some(pairs: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most `NUM_PAIRS`, spread over all."""
    pairs = list(pairs)
    return pairs[:: -(-len(pairs) // NUM_PAIRS) or 1]


def _letter_pairs(text: str) -> set[str]:
    text = text.casefold()
    return set(map("".join, itertools.pairwise(text))) if len(text) > 1 else {text}
