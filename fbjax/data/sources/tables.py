"""Rows of a product table become raw products, images embedded or by path.

Owns what a product is; knows nothing of file formats below it, nor of pieces, records or models. What cannot be used is
yielded as `Skipped`.
"""

import dataclasses
import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fbjax.config.schema import Columns
from fbjax.core import paths
from fbjax.data.sources import fashiongen
from fbjax.data.sources.images import encode_array, normalise_image
from fbjax.data.sources.table_readers import column_names, listed, read_rows

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", fashiongen.SUFFIX)
OTHER_SPLIT, DUPLICATE = "group is in another split", "duplicate id"
MAX_NAME = 500  # characters of an id, a category, a group: a longer one is a cell that swallowed others
MAX_IMAGE_BYTES = 2**28
NOTHING = frozenset(("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A"))  # how programs spell a missing value


@dataclasses.dataclass(frozen=True)
class Product:
    id: str
    text: str
    category: str
    group: str
    image: bytes  # JPEG or PNG, RGB, upright
    where: str  # file and row


@dataclasses.dataclass(frozen=True)
class Skipped:
    where: str  # file and row
    id: str
    reason: str
    group: str = ""  # where the row got so far


def find_files(pattern: str, manual_dir: str = "") -> list[Path]:
    """The table files that a path or glob names, sorted; the one in `manual_dir` of "fashiongen:train" and its like."""
    if fashiongen.is_named(pattern):
        return [fashiongen.find(pattern, manual_dir)]
    files = paths.find(pattern)
    if not files:
        raise FileNotFoundError(f"no table at {str(pattern)!r}: set config.data.train (or --data) to a file or a glob")
    wrong = [str(file) for file in files if file.suffix.lower() not in SUFFIXES]
    if wrong:
        raise ValueError(f"{wrong[0]} is none of {', '.join(SUFFIXES)}")
    return files


def check_columns(files: list[Path], columns: Columns) -> None:
    """Raises with the columns there are where a mapped one is missing from any file."""
    for file in files:
        there = column_names(file)
        missing = [name for name in mapped_columns(columns) if name not in there]
        if missing:
            raise ValueError(
                f"{file} has no column {', '.join(map(repr, missing))}; it has {listed(there)} "
                "(map them in config.data.columns)"
            )


def mapped_columns(columns: Columns) -> list[str]:
    return [columns.id, *columns.text, columns.image, columns.category, *[columns.group] * bool(columns.group)]


def read_products(
    files: list[Path],
    columns: Columns,
    image_root: str,
    max_side: int,
    wanted: Callable[[str], bool] = lambda group: True,
) -> Iterator[Product | Skipped | None]:
    """Every row as a `Product`, as a `Skipped` that says why not, or as None where its group is not `wanted`.

    Images are shrunk as far as `max_side` x `max_side` allows. Of rows with one id the first with text and category
    counts.
    """
    for described, cell, folder in describe_rows(files, columns):
        if isinstance(described, Product):
            if wanted(described.group):
                described = with_image(described, cell, paths.as_path(image_root or folder), max_side)
            else:
                described = Skipped(described.where, described.id, OTHER_SPLIT, described.group)
        yield described


def describe_rows(
    files: list[Path], columns: Columns, images: bool = True
) -> Iterator[tuple[Product | Skipped, object, Path]]:
    """Every row as a product that still lacks its image, or as skipped; its image cell, None unless `images`; its
    file's folder."""
    seen: set[str] = set()
    names = {name for name in mapped_columns(columns) if images or name != columns.image}
    for file in files:
        for number, row in enumerate(read_rows(file, names), start=1):
            described = describe(row, columns, f"{file.name} row {number}")
            if isinstance(described, Product):
                if described.id in seen:
                    described = Skipped(described.where, described.id, DUPLICATE)
                seen.add(described.id)
            yield described, row.get(columns.image) if isinstance(row, dict) else None, file.parent


def read_texts(files: list[Path], columns: Columns) -> Iterator[str]:
    """The text of every row that has one, images untouched."""
    for file in files:
        for row in read_rows(file, {*columns.text}):
            if isinstance(row, dict) and (text := _joined(row, columns)):
                yield text


def read_labels(files: list[Path], columns: Columns, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{id: its cells of the columns `names`, "" where empty} of every row that may be a product, images untouched.

    Raises ValueError with the columns there are where one is missing.
    """
    labels: dict[str, tuple[str, ...]] = {}
    wanted = {*mapped_columns(columns), *names} - {columns.image}
    for file in files:
        there = column_names(file)
        if missing := [name for name in names if name not in there]:
            raise ValueError(f"{file} has no column {', '.join(map(repr, missing))}; it has {listed(there)}")
        for number, row in enumerate(read_rows(file, wanted), start=1):
            described = describe(row, columns, f"{file.name} row {number}")
            if isinstance(described, Product):
                labels.setdefault(described.id, tuple(clean_name(row.get(name)) for name in names))
    return labels


def describe(row: dict | str, columns: Columns, where: str) -> Product | Skipped:
    """All of a row's product but its image, or why there is none."""
    if isinstance(row, str):
        return Skipped(where, "", row)
    named = {"id": clean_name(row.get(columns.id)), "category": clean_name(row.get(columns.category))}
    named["group"] = (clean_name(row.get(columns.group)) if columns.group else "") or named["id"]
    text = _joined(row, columns)
    identity = named["id"][:MAX_NAME]
    if not identity:
        return Skipped(where, "", "missing id")
    if not text:
        return Skipped(where, identity, "empty text")
    if not named["category"]:
        return Skipped(where, identity, "missing category")
    for role, name in named.items():
        if len(name) > MAX_NAME:
            return Skipped(where, identity, f"{role} of more than {MAX_NAME} characters")
    return Product(text=text, image=b"", where=where, **named)


def with_image(product: Product, cell, root: Path, max_side: int) -> Product | Skipped:
    """`product` with the image that its cell holds or names, or why there is none."""
    try:
        return dataclasses.replace(product, image=normalise_image(image_bytes(cell, root), max_side))
    except FileNotFoundError:
        reason = "image file not found"
    except OSError:
        reason = "unreadable image file"
    except ValueError as error:
        reason = str(error)
    return Skipped(product.where, product.id, reason, product.group)


def image_bytes(cell, root: Path) -> bytes:
    """The encoded image that a cell holds or names: bytes, pixels, a path, a {bytes, path} struct, a list's first."""
    if isinstance(cell, np.ndarray):
        return encode_array(cell)
    if isinstance(cell, list):
        cell = next(filter(None, cell), None)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    name = cell.strip() if isinstance(cell, str) else ""
    if not name or name in NOTHING:
        raise ValueError("missing image")
    if name.lower().startswith("file://"):
        name = urllib.parse.unquote(name[len("file://") :].removeprefix("localhost"))
    elif is_url(name):
        raise ValueError("image is a URL: it is not fetched")
    path = _image_path(name, root)
    if paths.size_and_time(path)[0] > MAX_IMAGE_BYTES:
        raise ValueError(f"image file of more than {MAX_IMAGE_BYTES // 2**20} MiB")
    encoded = path.read_bytes()
    if not encoded:
        raise ValueError("empty image file")
    return encoded


def is_url(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://|//|data:", name, re.IGNORECASE) is not None


def _image_path(name: str, root: Path) -> Path:
    """The regular file that a cell names; a path written on Windows where there is no such file as it stands."""
    for path in (root / name, root / name.replace("\\", "/")):
        try:
            if path.is_file():
                return path
        except (ValueError, OSError):  # NUL, half a surrogate pair, too long a name
            continue
    try:
        there = (root / name).exists()
    except (ValueError, OSError):
        there = False
    raise OSError(f"{name} is no file") if there else FileNotFoundError(name)  # a folder, or what would never end


def _joined(row: dict, columns: Columns) -> str:
    return " ".join(part for name in columns.text if (part := clean_text(row.get(name))))


def clean_text(value) -> str:
    """A cell's text with single spaces; "" where there is none. Lists and structs are their values, joined."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | dict):
        value = " ".join(_scalars(value, depth=3))
    if value is None or isinstance(value, np.ndarray) or value != value:  # None, pixels or NaN
        return ""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())  # half a surrogate pair becomes ?


def clean_name(value) -> str:
    """What is compared rather than read, an id, category or group: without NUL, which NumPy drops at an end."""
    name = clean_text(value)
    name = " ".join(name.replace("\0", " ").split()) if "\0" in name else name
    return "" if name in NOTHING else name


def _scalars(value, depth: int) -> Iterator[str]:
    for part in value.values() if isinstance(value, dict) else value:
        if not isinstance(part, list | dict):
            yield clean_text(part)
        elif depth > 1:
            yield from _scalars(part, depth - 1)
