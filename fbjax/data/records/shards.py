"""Where files can be entered: stretches of rows that workers read apart from each other.

A stretch of a file that holds images or features is named by its place and read where it is worked on. Text cannot be
entered in the middle, and a row that only names its image is small: such rows are carried along.
"""

import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from fbjax.core import paths
from fbjax.data.sources import fashiongen, table_readers
from fbjax.data.sources.release_features import Layout

ROWS_AT_ONCE = 256  # carried along, or read of an HDF5 file
LINES_AT_ONCE = 32  # of the release's files, some 32 MB


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of `file`, which are numbered from `first` on (the file's first is 1)."""

    file: Path
    first: int
    carried: tuple[dict | str, ...] = ()
    group: int | None = None  # the row group of a Parquet file
    span: tuple[int, int] | None = None  # from and to: rows of an HDF5 file, bytes of the release's
    layout: Layout | None = None


def cut_table(file: Path, columns: Iterable[str], image: str) -> Iterator[Part]:
    """The parts of a table of which `columns` are read, one of them `image`."""
    if file.suffix.lower() == fashiongen.SUFFIX:
        total = fashiongen.count_rows(file)
        for start in range(0, total, ROWS_AT_ONCE):
            yield Part(file, start + 1, span=(start, min(start + ROWS_AT_ONCE, total)))
    elif image in table_readers.binary_columns(file):
        lengths = table_readers.group_lengths(file)
        for group, before in enumerate(itertools.accumulate(lengths, initial=0)):
            if group < len(lengths):
                yield Part(file, before + 1, group=group)
    else:
        numbered = enumerate(table_readers.read_rows(file, set(columns)), start=1)
        while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
            yield Part(file, some[0][0], carried=tuple(row for _, row in some))


def read_rows(part: Part, columns: set[str]) -> Iterator[tuple[int, dict | str]]:
    """(number, row) of each of a table's rows, as `rows.read_rows` gives them."""
    if part.span:
        found = fashiongen.read_rows(part.file, columns, range(*part.span))
    elif part.group is not None:
        found = table_readers.read_group(part.file, part.group, columns)
    else:
        found = part.carried
    return enumerate(found, start=part.first)


def cut_release(file: Path, layout: Layout) -> Iterator[Part]:
    """The parts of one of the release's files, whose lines are looked through for their ends."""
    with paths.open_binary(file) as stream:
        start, first = 0, 1
        while some := [len(line) for line in itertools.islice(stream, LINES_AT_ONCE)]:
            yield Part(file, first, span=(start, start + sum(some)), layout=layout)
            start, first = start + sum(some), first + len(some)


def read_lines(part: Part) -> Iterator[tuple[int, str]]:
    """(number, line) of each line of a part that is not blank, as `release` reads them."""
    with paths.open_binary(part.file) as stream:
        stream.seek(part.span[0])
        whole = io.BytesIO(stream.read(part.span[1] - part.span[0]))
    for number, line in enumerate(whole, start=part.first):
        line = line.decode("utf-8", "replace")
        if line.strip():
            yield number, line.rstrip("\r\n")
