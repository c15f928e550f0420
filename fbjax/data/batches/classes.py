"""The values of attributes that a run tells apart: those that enough training products have, column by column."""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NO_CLASS = -1  # in place of a class: the product lacks the attribute, or its value is no class


class Column(NamedTuple):
    """An attribute: a column of the product table."""

    name: str
    counts: Mapping[str, int]  # training products of each value, the most frequent first
    without: int  # training products that lack the attribute
    values: tuple[str, ...]  # the classes, the most frequent first

    @property
    def rare(self) -> frozenset[str]:
        """Values of training products that are too few to learn from."""
        return frozenset(self.counts) - frozenset(self.values)


class Classes:
    """The classes of each attribute, in the order of their columns."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]], without: Mapping[str, int], fewest: int):
        """`counts`: {column: {value: its number of training products}}; a class has at least `fewest` of them."""
        self._content = {"fewest": fewest, "counts": counts, "without": without}
        self.columns = tuple(
            Column(name, of, without[name], tuple(value for value, number in of.items() if number >= fewest))
            for name, of in counts.items()
        )

    @classmethod
    def of_cells(cls, names: Sequence[str], cells: np.ndarray, fewest: int) -> "Classes":
        """The classes of training products, ``cells [N, A]`` str; "" is a product without the attribute.

        Raises ValueError where a column has fewer than two classes.
        """
        counts, without = {}, {}
        for name, column in zip(names, cells.T, strict=True):
            found = collections.Counter(column.tolist())
            without[name] = found.pop("", 0)
            counts[name] = dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
        classes = cls(counts, without, fewest)
        for column in classes.columns:
            if len(column.values) < 2:
                raise ValueError(
                    f"column {column.name!r} has {len(column.values)} values with at least {fewest} of the "
                    f"{len(cells):,} training products ({len(column.counts):,} values in all): there is nothing to "
                    "tell apart (name another in tasks.attributes.columns, or lower tasks.attributes.fewest_products)"
                )
        return classes

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of classes of each column."""
        return tuple(len(column.values) for column in self.columns)

    def codes(self, cells: np.ndarray) -> np.ndarray:
        """``cells [N, A]`` as rows of each column's classes, int32 [N, A], or `NO_CLASS`."""
        found = np.empty(cells.shape, np.int32)
        for place, column in enumerate(self.columns):
            rows = {value: row for row, value in enumerate(column.values)}
            found[:, place] = [rows.get(value, NO_CLASS) for value in cells[:, place].tolist()]
        return found

    def described(self) -> list[str]:
        """What training knows of each column, a line each."""
        lines = []
        for column in self.columns:
            there = sum(column.counts.values())
            rare = sum(column.counts[value] for value in column.rare)
            lines.append(
                f"attribute {column.name}: {len(column.values)} classes; of {there + column.without:,} training "
                f"products {column.without:,} lack it, and {rare:,} have one of {len(column.rare):,} rarer values"
            )
        return lines

    def to_json(self) -> str:
        return json.dumps(self._content, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Classes":
        content = json.loads(text)
        return cls(content["counts"], content["without"], content["fewest"])

    def __eq__(self, other: object) -> bool:
        """Whether both tell the same values apart, in the same order."""
        return isinstance(other, Classes) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def _values(self) -> tuple:
        return tuple((column.name, column.values) for column in self.columns)
