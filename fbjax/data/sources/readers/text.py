"""CSV and TSV: cells of text under a header line."""

import collections
import csv
import functools
import re
from collections.abc import Iterator

from fbjax.data.sources.readers.base import SURPLUS, Table, unique_names
from fbjax.data.sources.readers.encodings import about_encoding, encoding_of, open_text

MAX_LINES = 1000  # of a row; a longer one has a quote that was never closed
SEP_LINE = re.compile(r'\ufeff?"?sep=(.)"?', re.IGNORECASE)  # what Excel writes above the header


class Text(Table):
    """A .csv or .tsv file. The delimiter is a tab in a .tsv, else the most frequent of , ; tab | in the header."""

    @functools.cached_property
    def encoding(self) -> str:
        return encoding_of(self.path, self.reading.encoding).name

    @functools.cached_property
    def delimiter(self) -> str:
        with open_text(self.path, self.encoding) as stream:
            header = stream.readline(2**16)
        if declared := SEP_LINE.fullmatch(header.strip()):
            return declared[1]
        unquoted = re.sub(r'"[^"]*"', "", header)
        return "\t" if ".tsv" in self.path.name.lower()[-8:] else max(",;\t|", key=unquoted.count)

    def columns(self) -> list[str]:
        with open_text(self.path, self.encoding) as stream:
            return _header(_csv_cells(stream, self.delimiter))

    def rows(self, names: set[str] | None = None) -> Iterator[dict | str]:
        with open_text(self.path, self.encoding) as stream:
            rows = _csv_cells(stream, self.delimiter)
            header = _header(rows)
            for cells in rows:
                yield self._row(header, cells)

    def about(self) -> tuple[str, list[str]]:
        mark, warnings = about_encoding(self.path, self.reading.encoding)
        return f"columns divided by {self.delimiter!r}, {mark}", warnings

    def _row(self, header: list[str], cells: list[str] | str) -> dict | str:
        if not isinstance(cells, list):
            return "malformed row"
        surplus = len(cells) - len(header)
        if surplus > 0 and not any(cells[len(header) :]):  # Excel's trailing delimiters
            cells = cells[: len(header)]
        elif surplus > 0:
            if self.reading.rest not in header:
                return SURPLUS
            first = header.index(self.reading.rest)
            end = first + surplus + 1
            cells = [*cells[:first], self.delimiter.join(cells[first:end]), *cells[end:]]
        return dict(zip(header, cells, strict=False))


def _csv_cells(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | str]:
    """The cells of each row, or "" for a line with a quote that is never closed; the next lines stay intact."""
    waiting, taken = collections.deque(), []

    def take():
        while len(taken) < MAX_LINES:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield line

    while True:
        taken.clear()
        try:
            cells = next(csv.reader(take(), delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error:
            waiting.extendleft(reversed(taken[1:]))
            cells = _lenient_cells(taken[0], delimiter) if len(taken) == 1 else ""
        if cells != []:
            yield cells


def _lenient_cells(line: str, delimiter: str) -> list[str] | str:
    """The cells of one line with misplaced quotes."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell beyond the limit
        return ""


def _header(rows: Iterator[list[str] | str]) -> list[str]:
    first = next(rows, [])
    if first and first[0][:4].lower() == "sep=" and len(first[0]) < 6 and not any(first[1:]):
        first = next(rows, [])
    return unique_names(list(first))
