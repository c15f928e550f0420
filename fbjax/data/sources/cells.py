"""What the cells of a table say: words, names and ids."""

import re
from collections.abc import Iterator

import numpy as np

from fbjax.data.sources.markup import without_markup
from fbjax.data.sources.pictures import NOTHING

WHOLE = re.compile(r"\d+\.0+")
FORMULA = re.compile(r'^="([^"]*)"$')  # with which spreadsheets keep the zeros that a number begins with


def plain_text(value) -> str:
    """The words of a text cell, without HTML."""
    text = clean_text(value)
    return clean_text(without_markup(text)) if "<" in text or "&" in text else text


def clean_text(value) -> str:
    """A cell's text with single spaces, "" if there is none; of lists and structs the joined values."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | dict):
        value = " ".join(_scalars(value, depth=3))
    if value is None or isinstance(value, np.ndarray) or value != value:  # None, pixels or NaN
        return ""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())  # half a surrogate pair becomes ?


def clean_name(value) -> str:
    """The text of an id, category or group, without NUL, which NumPy drops at the end of a string.

    A whole number is written as one: tables make floats of integers where a cell is empty.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = clean_text(value)
    name = " ".join(name.replace("\0", " ").split()) if "\0" in name else name
    return "" if name in NOTHING else name


def clean_id(value) -> str:
    """`clean_name` of an id or group; in a text table also without the .0 of a whole number, and of ="007" the 007."""
    name = FORMULA.sub(r"\1", clean_name(value))
    return name.partition(".")[0] if WHOLE.fullmatch(name) else name


def _scalars(value, depth: int) -> Iterator[str]:
    for part in value.values() if isinstance(value, dict) else value:
        if not isinstance(part, list | dict):
            yield clean_text(part)
        elif depth > 1:
            yield from _scalars(part, depth - 1)
