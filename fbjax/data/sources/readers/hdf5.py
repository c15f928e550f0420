"""Fashion-Gen's HDF5 files as a table; `fashiongen` reads them."""

from collections.abc import Iterator

from fbjax.data.sources import fashiongen
from fbjax.data.sources.readers.base import Table

ROWS_A_BLOCK = 256


class Hdf5(Table):
    def columns(self) -> list[str]:
        return fashiongen.column_names(self.path)

    def binary(self) -> set[str]:
        return {fashiongen.IMAGE}

    def rows(self, names: set[str] | None = None) -> Iterator[dict]:
        return fashiongen.read_rows(self.path, names)

    def about(self) -> tuple[str, list[str]]:
        return "HDF5 in Fashion-Gen's schema", []

    def blocks(self) -> list[int]:
        total = fashiongen.count_rows(self.path)
        return [min(ROWS_A_BLOCK, total - start) for start in range(0, total, ROWS_A_BLOCK)]

    def read_block(self, block: int, names: set[str]) -> Iterator[dict]:
        start = block * ROWS_A_BLOCK
        return fashiongen.read_rows(self.path, names, range(start, start + self.blocks()[block]))

    def read_places(self, names: set[str], places: list[int]) -> Iterator[dict]:
        """The rows `places`, in rising order."""
        return fashiongen.read_rows(self.path, names, places)
