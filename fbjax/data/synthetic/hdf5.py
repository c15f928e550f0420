"""The drawn catalogue as Fashion-Gen's two HDF5 files, to try the paper's config.

A drawn group becomes a product, and its pictures become photos with the description of the first, as in Fashion-Gen.
"""

import collections
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fbjax.data.sources import fashiongen
from fbjax.data.sources.readers import open_table
from fbjax.data.synthetic import garments
from fbjax.data.synthetic.products import write_catalogue

SIDE = 256  # pixels of a square image


def write_hdf5(folder: str | Path, num_products: int, seed: int, progress: Callable) -> dict[str, Path]:
    """Writes Fashion-Gen's two files from train.parquet and validation.parquet in `folder`; draws these if missing.

    Keeps a file that is newer than its Parquet file.
    """
    written = {}
    for split, table in write_catalogue(folder, num_products, seed, progress).items():
        path = written[split] = Path(folder) / fashiongen.FILES[split]
        if not path.is_file() or path.stat().st_mtime_ns < table.stat().st_mtime_ns:
            number = open_table(table).count() or 0
            rows = progress(_photos(open_table(table).rows()), number, f"writing {split}")
            fashiongen.write(path, rows, number, SIDE)
    return written


def _photos(products: Iterator[dict]) -> Iterator[dict]:
    """Drawn products as Fashion-Gen's rows."""
    kinds, first, photos = list(garments.CATEGORIES), {}, collections.Counter()
    for product in products:
        kind, _, place = product["group"].rpartition("-")  # a group is in only one of the two files
        told = first.setdefault(product["group"], product)
        photos[product["group"]] += 1
        yield {
            fashiongen.PRODUCT: 1_000_000 * (1 + kinds.index(kind)) + int(place),
            fashiongen.POSE: f"id_gridfs_{photos[product['group']]}",
            "input_name": told["title"],
            "input_description": f"{told['title']}. {told['caption']}",
            "input_category": product["category"],
            "input_subcategory": product["subcategory"],
            fashiongen.IMAGE: _square(product["image"]["bytes"]),
        }


def _square(encoded: bytes) -> np.ndarray:
    """An image in the middle of a white square, uint8 [SIDE, SIDE, 3]."""
    square = Image.new("RGB", (SIDE, SIDE), "white")
    with Image.open(io.BytesIO(encoded)) as image:
        image.thumbnail((SIDE, SIDE))
        square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(square)
