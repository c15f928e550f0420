"""Fabricated product tables: coloured shapes with texts that name them, in every form that a table may have."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image, ImageDraw

COLUMNS = ("id", "title", "caption", "category", "group", "image")
COLOURS = {
    "red": (200, 30, 40),
    "green": (30, 140, 60),
    "blue": (40, 70, 200),
    "yellow": (230, 200, 40),
    "black": (20, 20, 20),
    "pink": (240, 130, 180),
    "brown": (120, 75, 40),
    "grey": (130, 130, 130),
}
SHAPES = ("dress", "bag", "shirt", "hat")
MATERIALS = ("cotton", "leather", "linen", "wool", "silk", "denim")
DETAILS = ("a zip", "two pockets", "gold buttons", "a long strap", "soft lining", "short sleeves", "a wide brim")
GROUP_SIZES = (1, 2, 1, 3, 1)  # over and over, within each category


def make_products(num: int, seed: int = 0) -> list[dict]:
    """`num` products {id, title, caption, category, group, image, format}, the same for the same seed.

    Categories take turns. `image` is RGB, about 40 x 56 pixels; `format` (JPEG, PNG in turn) is how it is written out.
    """
    rng = np.random.default_rng(seed)
    products = []
    for number in range(num):
        category = SHAPES[number % len(SHAPES)]
        colour = str(rng.choice(list(COLOURS)))
        material, detail = rng.choice(MATERIALS), rng.choice(DETAILS)
        products.append(
            {
                "id": f"p{seed}-{number:04d}",
                "title": f"{colour} {material} {category}",
                "caption": f"A {colour} {category} of {material} with {detail}.",
                "category": category,
                "group": f"{category}-{_group(number // len(SHAPES))}",
                "image": _draw(category, COLOURS[colour], rng),
                "format": ("JPEG", "PNG")[number // len(SHAPES) % 2],
            }
        )
    return products


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def write_parquet(path: str | Path, products: list[dict]) -> Path:
    """Hugging Face's convention: `image` is a struct {bytes, path}. An `image` that is no picture is kept as it is."""
    rows = []
    for product in products:
        row = {name: product[name] for name in COLUMNS if name in product}
        if isinstance(product.get("image"), Image.Image):
            name = f"{product['id']}.{product['format'].lower()}"
            row["image"] = {"bytes": encode(product["image"], product["format"]), "path": name}
        rows.append(row)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return Path(path)


def write_csv(
    path: str | Path, products: list[dict], delimiter: str = ",", encoding: str = "utf-8", more: tuple[str, ...] = ()
) -> Path:
    """Image files in images/ beside the table, which holds their paths relative to itself; `more`: further columns."""
    path = Path(path)
    with open(path, "w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow([*COLUMNS, *more])
        for product in _with_files(path, products):
            writer.writerow([product.get(name) for name in (*COLUMNS, *more)])
    return path


def write_jsonl(path: str | Path, products: list[dict]) -> Path:
    """Image files as `write_csv` leaves them."""
    path = Path(path)
    with open(path, "w", encoding="utf-8") as stream:
        for product in _with_files(path, products):
            stream.write(json.dumps({name: product[name] for name in COLUMNS if name in product}) + "\n")
    return path


def _with_files(path: Path, products: list[dict]) -> list[dict]:
    """The products with each picture, or its bytes, written to a file and replaced by that file's path."""
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, product in enumerate(products):
        image = product["image"]
        if isinstance(image, Image.Image):
            image = encode(image, product["format"])
        if isinstance(image, bytes):
            name = f"images/{path.stem}-{number}.{product['format'].lower()}"
            (path.parent / name).write_bytes(image)
            image = name
        rows.append({**product, "image": image})
    return rows


def _group(place: int) -> int:
    """Which group the product at `as_path` of its category falls into, by `GROUP_SIZES`."""
    bounds = np.cumsum(GROUP_SIZES)
    rounds, place = divmod(place, int(bounds[-1]))
    return rounds * len(GROUP_SIZES) + int(np.searchsorted(bounds, place, side="right"))


def _draw(category: str, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    width, height = int(rng.integers(36, 45)), int(rng.integers(52, 61))
    image = Image.new("RGB", (width, height), tuple(int(x) for x in rng.integers(225, 256, 3)))
    left, top = rng.integers(2, 9, 2)
    right, bottom = width - left, height - top
    draw = ImageDraw.Draw(image)
    match category:
        case "dress":
            draw.polygon([(width // 2, top), (left, bottom), (right, bottom)], fill=colour)
        case "bag":
            draw.rectangle([left, height // 2, right, bottom], fill=colour)
        case "shirt":
            draw.rectangle([left, top, right, bottom], fill=colour)
        case "hat":
            draw.ellipse([left, top, right, bottom], fill=colour)
    return image
