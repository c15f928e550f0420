"""Reads rows of cells from Parquet, CSV, TSV, JSONL and Fashion-Gen's HDF5 files, in any encoding.

Knows files, encodings and delimiters, but not the meaning of a column.
"""

import codecs
import collections
import csv
import dataclasses
import io
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet

from fbjax.core import paths
from fbjax.data.sources import fashiongen

MAX_LINES = 1000  # of a CSV row; a longer one has a quote that was never closed
SAMPLED_GROUPS, SAMPLED_BYTES = 16, 2**26  # Parquet row groups read for a sample, and bytes read of each
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, since it begins with that mark
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FOREIGN = {b"PK\x03\x04": "a ZIP or Excel file", b"\xd0\xcf\x11\xe0": "an Excel file", b"\x1f\x8b": "gzip"}
SEP_LINE = re.compile(r'\ufeff?"?sep=(.)"?', re.IGNORECASE)  # what Excel writes above the header


@dataclasses.dataclass(frozen=True)
class Form:
    """The format of a text file."""

    encoding: str
    delimiter: str = ""  # of a CSV or TSV
    damaged: bool = False  # UTF-8 with some invalid bytes


def count_rows(files: list[Path]) -> int | None:
    """The number of rows, or None if it is unknown before reading."""
    counters = {".parquet": lambda file: sum(group_lengths(file)), fashiongen.SUFFIX: fashiongen.count_rows}
    known = all(file.suffix.lower() in counters for file in files)
    return sum(counters[file.suffix.lower()](file) for file in files) if known else None


def column_names(file: Path) -> list[str]:
    """The column names without surrounding spaces; numbers repeated names and names empty ones by position."""
    match file.suffix.lower():
        case ".parquet":
            return _unique(_open_parquet(file).schema_arrow.names)
        case fashiongen.SUFFIX:
            return fashiongen.column_names(file)
        case ".jsonl":
            rows = (row for row in read_rows(file) if isinstance(row, dict))
            return list(dict.fromkeys(name for row in itertools.islice(rows, 100) for name in row))
        case _:
            form = form_of(file)
            with _open_text(file, form) as stream:
                return _header(_csv_cells(stream, form.delimiter))


def binary_columns(file: Path) -> set[str]:
    """Columns of a Parquet or HDF5 file with bytes, alone or in structs or lists: mostly embedded images."""
    if file.suffix.lower() == fashiongen.SUFFIX:
        return {fashiongen.IMAGE}
    if file.suffix.lower() != ".parquet":
        return set()
    schema = _open_parquet(file).schema_arrow
    return {name for name, kind in zip(_unique(schema.names), schema.types, strict=True) if "binary" in str(kind)}


def read_rows(file: Path, names: set[str] | None = None) -> Iterator[dict | str]:
    """Rows as dicts; a malformed row is a string with the reason. Parquet, HDF5: only columns `names` (None: all)."""
    if file.suffix.lower() == fashiongen.SUFFIX:
        yield from fashiongen.read_rows(file, names)
        return
    if file.suffix.lower() == ".parquet":
        yield from _parquet_rows(_open_parquet(file), file, names)
        return
    form = form_of(file)
    with _open_text(file, form) as stream:
        if not form.delimiter:
            yield from (_json_row(line) for line in stream if line.strip())
            return
        rows = _csv_cells(stream, form.delimiter)
        header = _header(rows)
        for row in rows:
            if len(row) > len(header) and not any(row[len(header) :]):
                row = row[: len(header)]  # Excel's trailing delimiters
            fits = isinstance(row, list) and len(row) <= len(header)
            yield dict(zip(header, row, strict=False)) if fits else "malformed row"


def group_lengths(file: Path) -> list[int]:
    """Rows of each row group of a Parquet file."""
    metadata = _open_parquet(file).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_group(file: Path, group: int, names: set[str]) -> Iterator[dict]:
    """The rows of one row group of a Parquet file as from `read_rows`."""
    return _parquet_rows(_open_parquet(file), file, names, [group])


def sample_rows(files: list[Path], names: set[str], num: int, total: int) -> Iterator[tuple[Path, int, dict | str]]:
    """About `num` of `total` rows with their file and number, spread evenly; reads few row groups of Parquet files."""
    place, drawn = 0, _spread(num, total)
    texts = [file for file in files if file.suffix.lower() != ".parquet"]
    for file in texts:
        if file.suffix.lower() == fashiongen.SUFFIX:
            end = place + fashiongen.count_rows(file)
            here = sorted(number - place for number in drawn if place <= number < end)
            for number, row in zip(here, fashiongen.read_rows(file, names, here), strict=True):
                yield file, number + 1, row
            place = end
            continue
        for number, row in enumerate(read_rows(file, names), start=1):
            if place in drawn:
                yield file, number, row
            place += 1
    opened = {file: _open_parquet(file) for file in files if file not in texts}
    groups = [(file, group) for file, parquet in opened.items() for group in range(parquet.num_row_groups)]
    groups = groups[:: -(-len(groups) // SAMPLED_GROUPS) or 1]
    for file, group in groups:
        parquet, about = opened[file].metadata, -(-num // len(groups))
        size, length = parquet.row_group(group).total_byte_size, parquet.row_group(group).num_rows
        span = min(length, max(about, length * SAMPLED_BYTES // max(size, 1)))
        before, drawn = sum(parquet.row_group(i).num_rows for i in range(group)), _spread(about, span)
        rows = itertools.islice(_parquet_rows(opened[file], file, names, [group]), span)
        for place, row in enumerate(rows):
            if place in drawn:
                yield file, before + place + 1, row


def _spread(num: int, total: int) -> set[int]:
    """`num` of `total` places, always the same: a random one of each equal stretch, since tables may be periodic."""
    draw, num = random.Random(0), min(num, total)
    return {draw.randrange(i * total // num, (i + 1) * total // num) for i in range(num)}


def form_of(file: Path) -> Form:
    """The encoding by its mark, else UTF-8 if most bytes beyond ASCII are valid, else cp1252 (Western Windows).

    The delimiter is a tab in a .tsv, else the most frequent of , ; tab | in the header line.
    """
    encoding, damaged = _encoding(file)
    if file.suffix.lower() == ".jsonl":
        return Form(encoding, damaged=damaged)
    with _open_text(file, Form(encoding)) as stream:
        header = stream.readline(2**16)
    if declared := SEP_LINE.fullmatch(header.strip()):
        return Form(encoding, declared[1], damaged)
    unquoted = re.sub(r'"[^"]*"', "", header)
    return Form(encoding, "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=unquoted.count), damaged)


def _encoding(file: Path) -> tuple[str, bool]:
    with paths.open_binary(file) as stream:
        head = stream.read(4096)
        for magic, what in FOREIGN.items():
            if head.startswith(magic):
                raise ValueError(f"{file} is {what}, not text: export it as CSV in UTF-8, or unpack it")
        for mark, encoding in BOMS:
            if head.startswith(mark):
                return encoding, False
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[first::2].count(0) > len(head) // 4:
                return encoding, False
        stream.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        bad = good = 0
        while chunk := stream.read(2**20):
            text = decoder.decode(chunk)
            if not text.isascii():
                bad += text.count("\ufffd")
                good += len(text) - len(text.encode("ascii", "ignore")) - text.count("\ufffd")
    return ("cp1252", False) if bad > good else ("utf-8", bad > 0)


def _open_text(file: Path, form: Form):
    return io.TextIOWrapper(paths.open_binary(file), form.encoding, "replace", newline="")


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
    return _unique(list(first))


def _json_row(line: str) -> dict | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "malformed row"
    return {name.strip(): value for name, value in row.items()} if isinstance(row, dict) else "malformed row"


def _open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    stored = paths.open_binary(file) if paths.is_remote(file) else file
    try:
        return pyarrow.parquet.ParquetFile(stored, buffer_size=2**20)  # without it, memory holds a whole row group
    except Exception as error:  # Arrow raises a dozen kinds on a damaged file
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is not a readable Parquet file: {' '.join(str(error).split())[:300]}")


def _parquet_rows(parquet, file: Path, names: set[str] | None, groups: list[int] | None = None) -> Iterator[dict]:
    """Rows of the row groups `groups` (None: all). Raises ValueError if the file is damaged."""
    raw = parquet.schema_arrow.names
    columns = dict(enumerate(_unique(raw)))
    wanted = None
    if names is not None and len(set(raw)) == len(raw):  # Arrow cannot select one of several columns of one name
        columns = {place: name for place, name in columns.items() if name in names}
        wanted = [raw[place] for place in columns]
    batches = parquet.iter_batches(64, columns=wanted, row_groups=groups)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise _unreadable(file, error) from None
        if batch is None:
            return
        for _, *row in zip(range(batch.num_rows), *map(_cells, batch.columns), strict=True):
            yield dict(zip(columns.values(), row, strict=True))


def _cells(column) -> list:
    """A Parquet column's values; None for a value that Python cannot represent."""
    try:
        return column.to_pylist()
    except Exception:  # invalid UTF-8, a year after 9999
        return [_cell(value) for value in column]


def _cell(value):
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else None  # decoded by `clean_text`
    except Exception:
        return None


def _unique(names: list[str]) -> list[str]:
    unique = []
    for place, name in enumerate(names, start=1):
        name = " ".join(name.replace("\0", "").strip("\ufeff").split()) or f"column {place}"
        repeats = itertools.count(2)
        unique.append(name if name not in unique else next(n for i in repeats if (n := f"{name}.{i}") not in unique))
    return unique


def listed(names: list[str]) -> str:
    """Column names for a message, at most 40."""
    shown = [name if len(name) <= 60 and name.isprintable() else ascii(name[:60])[1:-1] + ".." for name in names[:40]]
    return ", ".join(shown) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
