"""The pictures that one cell names, none, one or several, and a product with those that can be read."""

import ast
import contextlib
import dataclasses
import json
import re

import numpy as np

from fbjax.data.sources.base import Product, Skipped
from fbjax.data.sources.image_folder import ImageFolder, read_image_file
from fbjax.data.sources.images import encode_array, normalise_image

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


def with_image(product: Product, cell, folder: ImageFolder, max_side: int) -> Product | Skipped:
    """`product` with the image of its cell, or the reason for skipping it."""
    try:
        return dataclasses.replace(product, image=normalise_image(image_bytes(cell, folder), max_side))
    except FileNotFoundError:
        reason = "image file not found"
    except OSError:
        reason = "unreadable image file"
    except ValueError as error:
        reason = str(error)
    return Skipped(product.where, product.id, reason, product.group)


def with_images(product: Product, cell, folder: ImageFolder, max_side: int, most: int) -> Product | Skipped:
    """`product` with the first `most` pictures of its cell that can be read, or the reason for skipping it.

    `Product.left_out` says what is wrong with the others up to there.
    """
    pictures = pictures_of(cell)
    if most == 1 or len(pictures) < 2:
        return with_image(product, cell, folder, max_side)
    there, broken = [], []
    for picture in pictures:
        found = with_image(product, picture, folder, max_side)
        if isinstance(found, Skipped):
            broken.append(found)
            continue
        there.append(found.image)
        if len(there) == most:
            break
    if not there:
        return broken[0]
    left_out = tuple(skipped.reason for skipped in broken)
    return dataclasses.replace(product, image=there[0], more_images=tuple(there[1:]), left_out=left_out)


def image_bytes(cell, folder: ImageFolder) -> bytes:
    """The encoded image of a cell: bytes, pixels, a path, a {bytes, path} struct, or the first of several."""
    cell = first_picture(cell, folder)
    if isinstance(cell, np.ndarray):
        return encode_array(cell)
    if isinstance(cell, bytes) and cell:
        return cell
    name = cell.strip() if isinstance(cell, str) else ""
    if not name or name in NOTHING:
        raise ValueError("missing image")
    if is_url(name):
        raise ValueError("image is a URL: it is not fetched")
    return read_image_file(folder.find(name))


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
