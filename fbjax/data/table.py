"""Product tables become raw products, row by row: Parquet, CSV/TSV or JSONL, images embedded or by path.

Owns what a table looks like; knows nothing of pieces, records or models. What cannot be used is yielded as `Skipped`.
"""

import csv
import dataclasses
import glob
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image, ImageOps

from fbjax.config import Columns

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
OTHER_SPLIT = "group is in another split"
STORED_AS_IS = ("JPEG", "PNG")
Image.MAX_IMAGE_PIXELS = 200_000_000  # beyond it Pillow refuses at twice the number: such a row is skipped


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


def find_files(pattern: str) -> list[Path]:
    """The table files that a path or glob names, sorted."""
    files = [Path(name) for name in sorted(glob.glob(str(pattern)))]
    if not files:
        raise FileNotFoundError(f"no table at {pattern!r}: set config.data.train (or --data) to a file or a glob")
    wrong = [str(file) for file in files if file.suffix.lower() not in SUFFIXES]
    if wrong:
        raise ValueError(f"{wrong[0]} is none of {', '.join(SUFFIXES)}")
    return files


def check_columns(files: list[Path], columns: Columns) -> None:
    """Raises with the columns there are where a mapped one is missing from any file."""
    for file in files:
        there = column_names(file)
        wanted = [columns.id, *columns.text, columns.image, columns.category]
        missing = [name for name in wanted + [columns.group] * bool(columns.group) if name not in there]
        if missing:
            raise ValueError(
                f"{file} has no column {', '.join(map(repr, missing))}; it has {', '.join(there)} "
                "(map them in config.data.columns)"
            )


def count_rows(files: list[Path]) -> int | None:
    """Rows in all, or None where only reading them would tell."""
    if all(file.suffix.lower() == ".parquet" for file in files):
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    return None


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
    seen: set[str] = set()
    for file in files:
        root = Path(image_root) if image_root else file.parent
        for number, row in enumerate(_rows(file), start=1):
            where = f"{file.name} row {number}"
            described = row if isinstance(row, str) else _described(row, columns, where)
            if isinstance(described, str):
                yield Skipped(where, "" if isinstance(row, str) else clean_text(row.get(columns.id)), described)
                continue
            if described.id in seen:
                yield Skipped(where, described.id, "duplicate id")
                continue
            seen.add(described.id)
            if not wanted(described.group):
                yield Skipped(where, described.id, OTHER_SPLIT, described.group)
                continue
            try:
                image = normalise_image(_image_bytes(row.get(columns.image), root), max_side)
                yield dataclasses.replace(described, image=image)
            except FileNotFoundError:
                yield Skipped(where, described.id, "image file not found", described.group)
            except OSError:
                yield Skipped(where, described.id, "unreadable image file", described.group)
            except ValueError as error:
                yield Skipped(where, described.id, str(error), described.group)


def read_texts(files: list[Path], columns: Columns) -> Iterator[str]:
    """The text of every row that has one, images untouched."""
    for file in files:
        for row in _rows(file, {*columns.text}):
            if not isinstance(row, str) and (text := _joined(row, columns)):
                yield text


def normalise_image(encoded: bytes, max_side: int) -> bytes:
    """An encoded image as JPEG or PNG, RGB, upright, no larger than needed for `max_side` x `max_side`.

    Bytes that are all that already come back unchanged. Transparency becomes white. Raises ValueError on no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            plain = (
                image.format in STORED_AS_IS
                and image.mode == "RGB"
                and "transparency" not in image.info
                and image.getexif().get(0x0112, 1) == 1
                and min(image.size) <= max_side
            )
            if plain:
                return encoded
            was_jpeg = image.format == "JPEG"
            image = to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow raises a dozen kinds on broken files
        raise ValueError("undecodable image") from error
    if min(image.size) > max_side:
        scale = max_side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, **({"format": "JPEG", "quality": 95} if was_jpeg else {"format": "PNG"}))
    return out.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits scaled to 8, transparency on white."""
    if image.mode.startswith("I"):  # 16 bits: convert() would clip instead of scale
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _described(row: dict, columns: Columns, where: str) -> Product | str:
    """All of a row's product but its image, or why there is none."""
    identity, text, category = (
        clean_text(row.get(columns.id)),
        _joined(row, columns),
        clean_text(row.get(columns.category)),
    )
    if not identity:
        return "missing id"
    if not text:
        return "empty text"
    if not category:
        return "missing category"
    group = clean_text(row.get(columns.group)) if columns.group else ""
    return Product(identity, text, category, group or identity, b"", where)


def _image_bytes(value, root: Path) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value.strip():
        return (root / value.strip()).read_bytes()
    raise ValueError("missing image")


def _joined(row: dict, columns: Columns) -> str:
    return " ".join(part for name in columns.text if (part := clean_text(row.get(name))))


def clean_text(value) -> str:
    """A cell's text with single spaces; "" where there is none."""
    if value is None or value != value:  # None or NaN
        return ""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())  # half a surrogate pair becomes ?


def column_names(file: Path) -> list[str]:
    match file.suffix.lower():
        case ".parquet":
            return _read_parquet_schema(file)
        case ".jsonl":
            rows = (row for row in _rows(file) if isinstance(row, dict))
            return list(dict.fromkeys(name for row in itertools.islice(rows, 100) for name in row))
        case _:
            with _open_text(file) as stream:
                return list(csv.DictReader(stream, dialect=_dialect(file)).fieldnames or [])


def _read_parquet_schema(file: Path) -> list[str]:
    try:
        return pyarrow.parquet.read_schema(file).names
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {error}") from None


def _rows(file: Path, names: set[str] | None = None) -> Iterator[dict | str]:
    """Rows as dicts, or a string that says why a row is none."""
    match file.suffix.lower():
        case ".parquet":
            parquet = pyarrow.parquet.ParquetFile(file)
            for batch in parquet.iter_batches(256, columns=sorted(names) if names else None):
                yield from batch.to_pylist()
        case ".jsonl":
            with _open_text(file) as stream:
                for line in stream:
                    if line.strip():
                        yield _json_row(line)
        case _:
            with _open_text(file) as stream:
                yield from _csv_rows(csv.DictReader(stream, dialect=_dialect(file)))


def _csv_rows(reader: csv.DictReader) -> Iterator[dict | str]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a cell beyond the limit: mostly a quote never closed
            yield "malformed row"
            continue
        yield "malformed row" if None in row else row


def _json_row(line: str) -> dict | str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return "malformed row"
    return row if isinstance(row, dict) else "malformed row"


def _open_text(file: Path):
    return open(file, encoding="utf-8-sig", errors="replace", newline="")


def _dialect(file: Path) -> type[csv.Dialect]:
    """Tabs in a .tsv; else whichever of , ; tab | stands most often in the header line."""

    class Dialect(csv.excel):
        pass

    with _open_text(file) as stream:
        header = stream.readline()
    Dialect.delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    return Dialect
