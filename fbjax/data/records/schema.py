"""Products become examples: what a record holds, and what the index keeps of it.

Knows what is written, not how or by whom: one process, or Beam's workers.
"""

import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, writer

from fbjax.core.paths import is_remote, upload
from fbjax.data.sources.release_features import FeatureProduct
from fbjax.data.sources.tables import Skipped
from fbjax.data.text.wordpiece import Vocabulary

INDEXED = ("ids", "groups", "categories", "num_pieces")
TOKENIZE_AT_ONCE = 256


def features_of(ready_made: tuple[int, int] | None) -> tfds.features.FeaturesDict:
    """The form of a record; `ready_made` is the shape (P, C) of features that stand in place of an image."""
    pieces = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    image = {"image": tfds.features.Image(shape=(None, None, 3))}
    if ready_made:
        raw = tfds.features.Encoding.BYTES
        image = {"features": tfds.features.Tensor(shape=ready_made, dtype=np.float16, encoding=raw)}
    names = {name: tfds.features.Text() for name in ("id", "group", "category", "text")}
    return tfds.features.FeaturesDict(names | {"pieces": pieces, "word_ids": pieces} | image)


def encode_rows(rows: Iterable[tuple], vocabulary: Vocabulary) -> Iterator[tuple]:
    """(key, the example of a product) or (key, why there is none) of every (key, product or skipped), in order."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, TOKENIZE_AT_ONCE)):
        plain = [row for _, row in batch if not isinstance(row, Skipped | FeatureProduct)]
        encoded = iter(vocabulary.pieces([row.text for row in plain]))
        for key, row in batch:
            if isinstance(row, Skipped):
                yield key, row
                continue
            ready_made = isinstance(row, FeatureProduct)
            pieces, word_ids = (row.pieces, row.word_ids) if ready_made else next(encoded)
            if not pieces:
                yield key, Skipped(row.where, row.id, "empty text", row.group)
                continue
            yield (
                key,
                {
                    "id": row.id,
                    "group": row.group,
                    "category": row.category,
                    "text": row.text,
                    "pieces": np.array(pieces, np.int32),
                    "word_ids": np.array(word_ids, np.int32),
                }
                | ({"features": row.features} if ready_made else {"image": io.BytesIO(row.image)}),
            )


def index_entry(example: dict) -> tuple:
    """What the index keeps of an example, in the order of `INDEXED`."""
    return example["id"], example["group"], example["category"], len(example["pieces"])


class RecordWriter(writer.ExampleWriter):
    """Writes ArrayRecord files, which are written to this machine only: what belongs elsewhere is copied there."""

    def __init__(self):
        super().__init__(file_adapters.FileFormat.ARRAY_RECORD)

    def write(self, path: str | Path, examples: Iterable[tuple[int, bytes]]) -> None:
        if not is_remote(path):
            return super().write(path, examples)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "records"
            super().write(local, examples)
            upload(local, path)
