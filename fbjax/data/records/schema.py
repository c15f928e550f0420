"""The fields of a record and of the index, and the way from products to records. Both builders share it."""

import functools
import hashlib
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, writer

from fbjax.core.paths import is_remote, upload
from fbjax.data.records.pipeline import decodable
from fbjax.data.sources.base import Product, Skipped
from fbjax.data.text.wordpiece import Vocabulary

INDEXED = ("ids", "groups", "categories", "num_pieces", "column_ends", "text_hashes", "image_hashes")
TOKENIZE_AT_ONCE = 256
KINDS = {
    "image": tfds.features.Image,
    "features": functools.partial(tfds.features.Tensor, dtype=np.float16, encoding=tfds.features.Encoding.BYTES),
}


def record_features(holds: tuple[str, tuple[int | None, ...]], max_images: int = 1) -> tfds.features.FeaturesDict:
    """The features of a record; `holds` is `DataSource.holds`. Of several pictures, all but the first are bytes."""
    fields = {name: tfds.features.Text() for name in ("id", "group", "category", "text")}
    fields |= dict.fromkeys(("pieces", "word_ids", "column_ends"), tfds.features.Tensor(shape=(None,), dtype=np.int32))
    name, shape = holds
    if max_images > 1:
        fields["more_images"] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(fields | {name: KINDS[name](shape=shape)})


def encode_rows(rows: Iterable[tuple], vocabulary: Vocabulary, several: bool = False) -> Iterator[tuple]:
    """(key, example) for every (key, product), and (key, skipped) unchanged, in order.

    Skips products without text, and those whose image is none. An example's image is what the pipelines decoded here.
    Before a product come the reasons why some of its pictures are left out. `several`: examples have `more_images`.
    """
    rows = iter(rows)
    while batch := list(itertools.islice(rows, TOKENIZE_AT_ONCE)):
        plain = [row for _, row in batch if not isinstance(row, Skipped) and not row.pieces]
        encoded = iter(vocabulary.pieces_of_columns([row.text for row in plain], [row.column_ends for row in plain]))
        for key, row in batch:
            if isinstance(row, Skipped):
                yield key, row
                continue
            pieces, word_ids, ends = (*row.pieces, [len(row.pieces[0])]) if row.pieces else next(encoded)
            if not pieces:
                yield key, Skipped(row.where, row.id, "empty text", row.group)
                continue
            example = {name: getattr(row, name) for name in ("id", "group", "category", "text")}
            numbers = {"pieces": pieces, "word_ids": word_ids, "column_ends": ends}
            example |= {name: np.array(values, np.int32) for name, values in numbers.items()}
            if not isinstance(row.image, bytes):
                yield key, example | {"features": row.image}
                continue
            images, problems = _decodable(row)
            if not images:
                yield key, Skipped(row.where, row.id, problems[0], row.group)
                continue
            for problem in (*row.left_out, *problems):
                yield key, Skipped(row.where, row.id, f"one of several pictures: {problem}", row.group)
            example["image"] = io.BytesIO(images[0])
            yield key, example | ({"more_images": images[1:]} if several else {})


def _decodable(product: Product) -> tuple[list[bytes], list[str]]:
    """The pictures of a product as the pipelines decode them, and what is wrong with the others."""
    images, problems = [], []
    for image in (product.image, *product.more_images):
        try:
            images.append(decodable(image))
        except ValueError as error:
            problems.append(str(error))
    return images, problems


def index_entry(example: dict) -> tuple:
    """An example's values of `INDEXED`."""
    ends = example["column_ends"].tolist()
    image = example["image"].getvalue() if "image" in example else example["features"].tobytes()
    image += b"".join(_length_first(picture) for picture in example.get("more_images", ()))
    hashes = (_hash(content) for content in (example["text"].encode() + example["pieces"].tobytes(), image))
    return example["id"], example["group"], example["category"], len(example["pieces"]), ends, *hashes


def _length_first(content: bytes) -> bytes:
    """So that no two lists of pictures are the same bytes."""
    return len(content).to_bytes(8) + content


def _hash(content: bytes) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


class RecordWriter(writer.ExampleWriter):
    """Writes ArrayRecord files. A remote file is written locally first and then copied: ArrayRecord needs that."""

    def __init__(self):
        super().__init__(file_adapters.FileFormat.ARRAY_RECORD)

    def write(self, path: str | Path, examples: Iterable[tuple[int, bytes]]) -> None:
        if not is_remote(path):
            return super().write(path, examples)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "records"
            super().write(local, examples)
            upload(local, path)
