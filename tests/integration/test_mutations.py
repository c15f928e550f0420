"""Damaged tables and images through `prepare`: every row is used or accounted for, or the file is named in one line."""

import base64
import csv
import io
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fbjax.config.data import Columns, DataConfig
from fbjax.data.inspection.check import render
from fbjax.data.inspection.understand import understand
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.data.text.wordpiece import SPECIAL, Vocabulary
from tests.support.tables import COLUMNS, encode, make_products

SIZE = 32
PRODUCTS = make_products(12)
COLUMNS_MAPPED = Columns(text=("title", "caption"), group="group")
FORMS = ("csv", "tsv", "jsonl", "parquet")
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1")
CELLS = (
    *(None, float("nan"), float("inf"), "", " ", "nan", "x" * 5_000, "a\0b", "\0", "\x01\x1b[31m", "\ud83d", "\u2028"),
    *({"a": {"b": [1, None]}}, [], ["a", ["b"]], 7, -0.0, 10**30, True, "=1+1", '"', '"a\nb"', "a,b;c\td", "..", "/"),
    *("images", "/dev/zero", "images/0.jpg\0", "file:///etc", "http://127.0.0.1:9/a.jpg", "images\\0.jpg", "a" * 300),
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, ".", "a", "dress", "bag", "shirt", "hat"]) + "\n")
    return Vocabulary.from_file(path)


@pytest.mark.parametrize("num", [30, pytest.param(400, marks=pytest.mark.slow)])
def test_a_damaged_table_is_read_or_refused_by_name(tmp_path, vocabulary, num):
    for seed in range(num):
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"table-{seed}"
        path = write(folder, [*rows_with_paths(folder)], FORMS[seed % len(FORMS)], rng, mutate_cells=seed % 8 < 4)
        if seed % 8 >= 4:
            path.write_bytes(damage(path.read_bytes(), rng))
        outcome(path, vocabulary)


@pytest.mark.parametrize("num", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_damaged_image_is_used_or_skipped(tmp_path, vocabulary, num):
    for seed in range(num):  # twelve images a table
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"images-{seed}"
        rows = [{**p, "image": damaged_image(p["image"], rng)} for p in PRODUCTS]
        outcome(write(folder, rows, "parquet", rng), vocabulary, decode=True)


def outcome(path, vocabulary, decode=False):
    """Checks and prepares the one table; all its rows must be accounted for."""
    try:
        assert decode or "".join(render(understand([path]), str(path)))
        source = open_source(DataConfig(train=str(path), columns=COLUMNS_MAPPED, holdout=0.0), SIZE)
        num_rows = sum(1 for _ in source.products([path], vocabulary))
        records = build_records(source, vocabulary, path.parent / "prepared", lambda rows, total, label: rows)["train"]
    except (ValueError, OSError) as error:
        assert path.name in str(error) and "\n" not in str(error), repr(error)
        return
    lines = (Path(records.files[0]).parent / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    assert all(row["where"].startswith(path.name) and row["reason"] for row in skipped)
    assert len(records) + len(skipped) == num_rows
    assert sum(records.report()["skipped"].values()) == len(skipped)
    assert len(set(records.ids.tolist())) == len(records) == len(records.rows(records.ids.tolist()))
    if decode:
        images = np.concatenate([*records.images(np.arange(len(records)), SIZE, 8)])
        assert images.shape == (len(records), SIZE, SIZE, 3)


def rows_with_paths(folder):
    (folder / "images").mkdir(parents=True)
    for number, product in enumerate(PRODUCTS):
        (folder / f"images/{number}.jpg").write_bytes(encode(product["image"], "JPEG"))
        yield {**product, "image": f"images/{number}.jpg"}


def write(folder, rows, form, rng, mutate_cells=False):
    folder.mkdir(exist_ok=True)
    path = folder / f"table.{form}"
    rows = [{name: row[name] for name in COLUMNS} for row in rows]
    if mutate_cells:
        for _ in range(rng.integers(1, 30)):
            rows[rng.integers(len(rows))][rng.choice(COLUMNS)] = CELLS[rng.integers(len(CELLS))]
    match form:
        case "parquet":
            columns = {name: parquet_column([row[name] for row in rows]) for name in COLUMNS}
            pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5)
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            out = io.StringIO()
            writer = csv.writer(out, delimiter="\t" if form == "tsv" else ",;|"[rng.integers(3)])
            writer.writerows([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)])
            path.write_bytes(out.getvalue().encode("utf-8", "replace"))
    return path


def parquet_column(values):
    """Of whatever type holds the values; else of strings, what was no string as no UTF-8 either."""
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        raw = [None if x is None else x.encode("utf-8", "replace") if isinstance(x, str) else b"\xff" for x in values]
        binary = pyarrow.array(raw, pyarrow.binary())
        return pyarrow.Array.from_buffers(pyarrow.string(), len(raw), binary.buffers())


def damage(raw, rng):
    """Bytes flipped, cut, inserted, deleted or repeated; lines swapped; another delimiter or encoding."""
    for _ in range(rng.integers(1, 4)):
        start, end = sorted(int(x) for x in rng.integers(0, len(raw) + 1, 2))
        lines = raw.split(b"\n")
        match rng.integers(10):
            case 0 | 1:
                flipped = bytearray(raw)
                for place in rng.integers(0, max(len(raw), 1), rng.integers(1, 20)):
                    flipped[place : place + 1] = rng.bytes(1)
                raw = bytes(flipped)
            case 2:
                raw = raw[:end]
            case 3:
                raw = raw[:start] + rng.bytes(int(rng.integers(1, 50))) + raw[start:]
            case 4:
                raw = raw[:start] + raw[min(end, start + 100) :]
            case 5:
                raw = raw[:end] + raw[start:]
            case 6:
                rng.shuffle(lines)
                raw = b"\n".join(lines)
            case 7:
                raw = raw.replace(b",", b";\t|,"[(i := rng.integers(4)) : i + 1], int(rng.integers(1, 40)))
            case 8:
                raw = raw.decode("utf-8", "replace").encode(str(rng.choice(ENCODINGS)), "replace")
            case 9:
                place = int(rng.integers(len(lines)))
                lines[place] = lines[place].replace(b" ", b'"' if rng.random() < 0.5 else b"\0\r", 1)
                raw = b"\n".join(lines)
    return raw


def damaged_image(image, rng):
    """Another form or mode, then bytes flipped or cut, or a header that claims another size."""
    form, mode = [
        *(("JPEG", "RGB"), ("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L")),
        *(("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "I;16"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB")),
        *(("TIFF", "CMYK"), ("TIFF", "F"), ("ICO", "RGBA"), ("PPM", "RGB"), ("PNG", "1")),
    ][rng.integers(18)]
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP") and rng.random() < 0.5 else {}
    image = Image.new("I;16", (20, 30), 40_000) if mode == "I;16" else image.convert(mode)
    if form == "JPEG" and rng.random() < 0.3:
        options["progressive"] = True
    raw = bytearray(encode(image, form, **options))
    match rng.integers(6):
        case 0:
            return bytes(raw)
        case 1:
            return bytes(raw[: rng.integers(len(raw))])
        case 2 if form == "PNG":  # the size in the header
            raw[16:24] = struct.pack(">II", *(int(x) for x in 2 ** rng.integers(0, 31, 2)))
        case 2 if form == "JPEG":
            place = max(raw.find(b"\xff\xc0"), raw.find(b"\xff\xc2"))
            raw[place + 5 : place + 9] = rng.bytes(4)
        case 3:
            raw = bytearray(base64.b64encode(raw)) if rng.random() < 0.2 else raw[::-1] if rng.random() < 0.2 else raw
        case _:
            for place in rng.integers(0, len(raw), rng.integers(1, 12)):
                raw[place] = rng.integers(256)
    return bytes(raw)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of files it reads all the same
        yield
