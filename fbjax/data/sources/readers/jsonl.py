"""JSON: one object a line, or one array of objects."""

import itertools
import json
import re
from collections.abc import Iterator

from fbjax.data.sources.readers.base import Table, first_columns
from fbjax.data.sources.readers.encodings import about_encoding, encoding_of, open_text

MALFORMED = "malformed row"
REMEDY = "write the products as one array, or as one object a line"
BETWEEN = re.compile(r"[\s,]*")
CHUNK = 2**20  # characters


class Json(Table):
    """A .jsonl or .json file, of any of the two forms."""

    def columns(self) -> list[str]:
        names = first_columns(self.rows())
        if not names and self.path.suffix.lower() == ".json" and next(self.rows(), None) is not None:
            raise ValueError(f"{self.path} has no row that is a JSON object: {REMEDY}")
        few = list(itertools.islice(self.rows(), 2))
        if len(few) == 1 and isinstance(few[0], dict):
            for name, cell in few[0].items():
                if isinstance(cell, list) and cell and all(isinstance(part, dict) for part in cell):
                    raise ValueError(f"{self.path} is one JSON object, with rows in its {name!r}: {REMEDY}")
        return names

    def rows(self, names: set[str] | None = None) -> Iterator[dict | str]:
        with self._open() as stream:
            if _first_letter(stream) == "[":
                yield from self._array(stream)
                return
        with self._open() as stream:
            yield from (_row(line) for line in stream if line.strip())

    def about(self) -> tuple[str, list[str]]:
        mark, warnings = about_encoding(self.path, self.reading.encoding)
        with self._open() as stream:
            return f"{'one JSON array' if _first_letter(stream) == '[' else 'JSON Lines'}, {mark}", warnings

    def _open(self):
        return open_text(self.path, encoding_of(self.path, self.reading.encoding).name)

    def _array(self, stream) -> Iterator[dict | str]:
        done = 0
        try:
            for value in _elements(stream):
                yield _as_row(value)
                done += 1
        except (json.JSONDecodeError, RecursionError):
            raise ValueError(f"{self.path}: its JSON array breaks off after row {done:,}: repair it") from None


def _first_letter(stream) -> str:
    """Reads up to the first letter that is no space, and returns it."""
    while (letter := stream.read(1)).isspace() or letter == "\ufeff":
        pass
    return letter


def _elements(stream) -> Iterator:
    """The elements of an array after its [, a few in memory at a time. Raises JSONDecodeError where it breaks off."""
    decoder, text, place = json.JSONDecoder(), "", 0
    while True:
        place = BETWEEN.match(text, place).end()
        if text.startswith("]", place):
            return
        try:
            value, end = decoder.raw_decode(text, place)
            if end == len(text):  # a number may go on
                raise json.JSONDecodeError("the text ends", text, end)
        except json.JSONDecodeError:
            more = stream.read(max(CHUNK, len(text) - place))  # doubled, so that a long element is parsed a few times
            if not more:
                raise
            text, place = text[place:] + more, 0
            continue
        yield value
        place = end


def _row(line: str) -> dict | str:
    try:
        return _as_row(json.loads(line))
    except (ValueError, RecursionError):
        return MALFORMED


def _as_row(value) -> dict | str:
    return {name.strip(): cell for name, cell in value.items()} if isinstance(value, dict) else MALFORMED
