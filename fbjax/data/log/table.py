"""Reads a log: each row of its table becomes an event, or the reason why it cannot."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from fbjax.config.data import DataConfig, LogConfig
from fbjax.core.registry import meant
from fbjax.data.sources import readers
from fbjax.data.sources.base import Skipped
from fbjax.data.sources.cells import clean_id, plain_text
from fbjax.data.sources.readers.base import Reading, listed

TRUTHS = {"1": 1, "0": 0, "true": 1, "false": 0, "yes": 1, "no": 0}


@dataclasses.dataclass(frozen=True)
class Event:
    """A query that led to a product, or two products that belong together."""

    where: str  # file and row
    product: str  # its id
    query: str = ""
    other: str = ""  # the id of a second product
    count: float = 1.0
    label: int = 1  # whether they match


def find(log: LogConfig, reading: Reading) -> list[Path]:
    """The tables of a log. Raises FileNotFoundError where there is none, ValueError where one lacks a column."""
    files = readers.find_tables(log.table)
    if not files:
        raise FileNotFoundError(f"no log at {log.table!r}: set config.log.table to a file, a folder or a glob")
    for file in files:
        there = readers.open_table(file, reading).columns()
        if missing := [name for name in columns(log) if name not in there]:
            named = ", ".join(f"{name!r}{meant(name, there)}" for name in missing)
            raise ValueError(f"{file} has no column {named}; it has {listed(there)} (map them in config.log)")
    return files


def columns(log: LogConfig) -> list[str]:
    """The columns that are read."""
    ends = [log.other] if log.other else [*log.query]
    return [name for name in (*ends, log.product, log.count, log.label) if name]


def read_events(log: LogConfig, data: DataConfig) -> Iterator[Event | Skipped]:
    """Every row of a log."""
    reading = Reading(data.encoding)
    for file in find(log, reading):
        table = readers.open_table(file, reading)
        for number, row in enumerate(table.rows({*columns(log)}), start=1):
            where = f"{file.name} row {number}"
            yield Skipped(where, "", row) if isinstance(row, str) else _event(row, log, where)


def _event(row: dict, log: LogConfig, where: str) -> Event | Skipped:
    product, other = clean_id(row.get(log.product)), clean_id(row.get(log.other)) if log.other else ""
    query = "" if log.other else " ".join(filter(None, (plain_text(row.get(name)) for name in log.query)))
    count, label = _number(row.get(log.count)) if log.count else 1.0, _truth(row.get(log.label)) if log.label else 1
    problems = {
        "no product": not product,
        "no second product": bool(log.other) and not other,
        "empty query": not log.other and not query,
        "a product paired with itself": bool(log.other) and product == other,
        "count is no number above 0": count is None,
        "label is neither 0 nor 1": label is None,
    }
    if reason := next((reason for reason, holds in problems.items() if holds), ""):
        return Skipped(where, product, reason)
    return Event(where, product, query, other, count, label)


def _number(cell) -> float | None:
    try:
        number = float(str(cell).strip())
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _truth(cell) -> int | None:
    return TRUTHS.get(clean_id(cell).lower())
