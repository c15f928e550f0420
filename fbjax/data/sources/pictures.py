"""The pictures that one cell names: none, one or several."""

import ast
import contextlib
import json
import re

import numpy as np

from fbjax.data.sources.image_folder import ImageFolder

IMAGE_NAME = re.compile(r".*\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|jp2)$", re.IGNORECASE | re.DOTALL)
BETWEEN = re.compile(r"\s*[|,;\n]\s*")
NOTHING = frozenset(("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A"))  # how programs spell a missing value


def pictures_of(cell) -> list:
    """The pictures of a cell: pixels, encoded bytes, or names of files or URLs.

    Several stand in a list, in a list written as text (["a.jpg", "b.jpg"]), or between | , ; or lines.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, list):
        return [picture for part in cell for picture in pictures_of(part)]
    if not isinstance(cell, str):
        return [cell] if isinstance(cell, np.ndarray) or isinstance(cell, bytes) and cell else []
    name = cell.strip()
    if not name or name in NOTHING:
        return []
    if name[0] == "[" and name[-1] == "]":
        return pictures_of(_written_list(name)) or [name]
    parts = [part for part in BETWEEN.split(name) if part]
    are_pictures = all(map(is_url, parts)) or not any(map(is_url, parts)) and all(map(IMAGE_NAME.match, parts))
    return parts if len(parts) > 1 and are_pictures else [name]


def first_picture(cell, folder: ImageFolder):
    """The first picture of a cell that is there, or its first; None if it has none."""
    pictures = pictures_of(cell)
    there = (picture for picture in pictures if not isinstance(picture, str) or _is_file(picture, folder))
    return next(there, pictures[0]) if len(pictures) > 1 else next(iter(pictures), None)


def is_url(name: str) -> bool:
    return re.match(r"(?!file://)[a-z][a-z0-9+.-]+://|//|data:", name, re.IGNORECASE) is not None


def _written_list(text: str) -> list:
    """The list that JSON or Python writes as `text`, or []."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = parse(text)
            return found if isinstance(found, list) else []
    return []


def _is_file(name: str, folder: ImageFolder) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return not is_url(name) and folder.find(name) is not None
    return False
