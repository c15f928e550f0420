"""Arrow's formats: Parquet, and the .arrow files of Hugging Face's `save_to_disk`."""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import ClassVar

import pyarrow
import pyarrow.parquet

from fbjax.core import paths
from fbjax.data.sources.readers.base import Table, unique_names

BATCH = 64  # rows that are converted at once


class Columnar(Table):
    """Columns with types. Integers of Hugging Face's ClassLabel are read as the names of their classes."""

    kind: ClassVar[str]

    @property
    def schema(self) -> pyarrow.Schema:
        raise NotImplementedError

    def columns(self) -> list[str]:
        return unique_names(self.schema.names)

    def binary(self) -> set[str]:
        kinds = zip(self.columns(), self.schema.types, strict=True)
        return {name for name, kind in kinds if "binary" in str(kind)}

    def rows(self, names: set[str] | None = None) -> Iterator[dict]:
        return self._rows(self._batches(self._wanted(names), None), names)

    def read_block(self, block: int, names: set[str]) -> Iterator[dict]:
        return self._rows(self._batches(self._wanted(names), block), names)

    def _batches(self, wanted: list[str] | None, block: int | None) -> Iterator[pyarrow.RecordBatch]:
        """Batches of the raw columns `wanted` (None: all) of one block (None: of the file)."""
        raise NotImplementedError

    def _wanted(self, names: set[str] | None) -> list[str] | None:
        raw = self.schema.names
        if names is None or len(set(raw)) < len(raw):  # Arrow cannot select one of several columns of one name
            return None
        return [name for name, unique in zip(raw, self.columns(), strict=True) if unique in names]

    def _rows(self, batches: Iterator[pyarrow.RecordBatch], names: set[str] | None) -> Iterator[dict]:
        """Raises ValueError if the file is damaged."""
        labels, wanted = self._labels(), self._wanted(names)
        columns = [name for name in self.columns() if wanted is None or name in names]
        batches = iter(batches)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # Arrow raises a dozen kinds on a damaged file
                raise self._unreadable(error) from None
            if batch is None:
                return
            cells = [
                _named(_cells(column), labels.get(name)) for name, column in zip(columns, batch.columns, strict=True)
            ]
            for _, *row in zip(range(batch.num_rows), *cells, strict=True):
                yield dict(zip(columns, row, strict=True))

    def _labels(self) -> dict[str, list[str]]:
        """{column: names of its classes} from Hugging Face's description of the features, if there is one."""
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return {
                " ".join(name.split()): feature["names"]
                for name, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
            }
        except (KeyError, ValueError, TypeError, AttributeError):
            return {}

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} is not a readable {self.kind} file: {' '.join(str(error).split())[:300]}")

    def about(self) -> tuple[str, list[str]]:
        return self.kind, []


class Parquet(Columnar):
    kind = "Parquet"

    @functools.cached_property
    def _file(self) -> pyarrow.parquet.ParquetFile:
        stored = paths.open_binary(self.path) if paths.is_remote(self.path) else self.path
        try:
            return pyarrow.parquet.ParquetFile(stored, buffer_size=2**20)  # without it, memory holds a whole row group
        except Exception as error:
            raise self._unreadable(error) from None

    @property
    def schema(self) -> pyarrow.Schema:
        return self._file.schema_arrow

    def blocks(self) -> list[int]:
        metadata = self._file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def block_bytes(self, block: int) -> int:
        return self._file.metadata.row_group(block).total_byte_size

    def _batches(self, wanted: list[str] | None, block: int | None) -> Iterator[pyarrow.RecordBatch]:
        return self._file.iter_batches(BATCH, columns=wanted, row_groups=None if block is None else [block])


class Arrow(Columnar):
    """A stream of record batches, each a block; or a file of them (Feather)."""

    kind = "Arrow"

    def _open(self) -> Iterable[pyarrow.RecordBatch]:
        if paths.is_remote(self.path):
            stored = pyarrow.PythonFile(paths.open_binary(self.path), mode="r")
        else:
            stored = pyarrow.memory_map(str(self.path))
        try:
            is_file = stored.read(6) == b"ARROW1"
            stored.seek(0)
            if not is_file:
                return pyarrow.ipc.open_stream(stored)
            opened = pyarrow.ipc.open_file(stored)
            return pyarrow.RecordBatchReader.from_batches(
                opened.schema, map(opened.get_batch, range(opened.num_record_batches))
            )
        except Exception as error:
            raise self._unreadable(error) from None

    @functools.cached_property
    def schema(self) -> pyarrow.Schema:
        return self._open().schema

    @functools.cached_property
    def _lengths(self) -> list[tuple[int, int]]:
        try:
            return [(batch.num_rows, batch.nbytes) for batch in self._open()]
        except Exception as error:
            raise self._unreadable(error) from None

    def blocks(self) -> list[int]:
        return [rows for rows, _ in self._lengths]

    def block_bytes(self, block: int) -> int:
        return self._lengths[block][1]

    def _batches(self, wanted: list[str] | None, block: int | None) -> Iterator[pyarrow.RecordBatch]:
        chosen = (None,) if block is None else (block, block + 1)
        for batch in itertools.islice(self._open(), *chosen):
            batch = batch if wanted is None else batch.select(wanted)
            for start in range(0, batch.num_rows, BATCH):
                yield batch.slice(start, BATCH)


def _named(cells: list, names: list[str] | None) -> list:
    """`cells` with the classes' names for their numbers; a number without a name, such as -1, becomes None."""
    if names is None:
        return cells
    return [
        names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell if isinstance(cell, str) else None
        for cell in cells
    ]


def _cells(column) -> list:
    """A column's values; None for a value that Python cannot represent."""
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
