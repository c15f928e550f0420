"""Spreadsheets of Excel and LibreOffice, by python-calamine, which the extra `excel` installs."""

from collections.abc import Iterator

from fbjax.core import paths
from fbjax.data.sources.readers.base import Table, unique_names

SUFFIXES = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")


class Sheet(Table):
    """The first sheet of a workbook that has rows. Numbers are floats, as the file stores them."""

    def columns(self) -> list[str]:
        return unique_names([str(cell) for cell in next(self._lines()[1], [])])

    def rows(self, names: set[str] | None = None) -> Iterator[dict]:
        lines = self._lines()[1]
        header = unique_names([str(cell) for cell in next(lines, [])])
        for cells in lines:
            yield {name: None if cell == "" else cell for name, cell in zip(header, cells, strict=False)}

    def about(self) -> tuple[str, list[str]]:
        first, _, others = self._lines()
        unread = [f"{self.path.name} has several sheets: {first!r} is read, not {', '.join(map(repr, others))}"]
        return f"a spreadsheet, its sheet {first!r}", unread * bool(others)

    def _lines(self) -> tuple[str, Iterator[list], list[str]]:
        """The name of the sheet, its lines that hold something, and the names of further sheets that do."""
        try:
            import python_calamine as calamine
        except ModuleNotFoundError:
            raise ValueError(
                f"{self.path} is a spreadsheet: pip install 'fbjax[excel]' to read it, or export it as CSV in UTF-8"
            ) from None
        try:
            with paths.open_binary(self.path) as stream:
                book = calamine.CalamineWorkbook.from_filelike(stream)
                sheets = [book.get_sheet_by_name(name) for name in book.sheet_names]
        except (calamine.CalamineError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.path} cannot be read as a spreadsheet: {reason} (remove a password; else export it as CSV)"
            ) from None
        filled = [sheet for sheet in sheets if sheet.height] or sheets[:1]
        lines = (line for line in filled[0].iter_rows() if any(cell != "" for cell in line))
        return filled[0].name, lines, [sheet.name for sheet in filled[1:]]
