"""A prepared split: products in a fixed order, read at random. Training and evaluation know no more of their data.

`fbjax.data.records` reads it from TFDS records by tf.data, `fbjax.data.arrays` from memory-mapped arrays by NumPy.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fbjax.data.batches.batch import Batch
from fbjax.data.batches.columns import WHOLE
from fbjax.data.batches.sampler import Sampler
from fbjax.data.sources.base import Product
from fbjax.data.text.wordpiece import Vocabulary

REPORT, SKIPPED = "report.json", "skipped.jsonl"  # files of the preparation


@dataclasses.dataclass(frozen=True)
class Split(abc.ABC):
    """N products. Rows have the table's order, without the skipped ones."""

    ids: np.ndarray  # [N] str
    groups: np.ndarray  # [N] int32 codes
    categories: np.ndarray  # [N] int32 codes, rows of:
    category_names: np.ndarray  # [number of categories] str
    num_pieces: np.ndarray  # [N] int32, [CLS] and [SEP] not counted
    column_ends: np.ndarray  # [N, F] int32: pieces up to the end of each of F text columns, the last of all
    text_hashes: np.ndarray  # [N] uint64, of text and pieces
    image_hashes: np.ndarray  # [N] uint64, of the stored image or features
    name: str  # folder-safe, unique to split and content

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digests(self) -> dict[str, str]:
        """What the products are, in their order: a hash of each of ids, groups, categories, texts and images."""
        content = {"ids": self.ids, "groups": self.groups, "categories": self.categories}
        content |= {"texts": self.text_hashes, "images": self.image_hashes}
        return {name: hashlib.sha256(repr(values.tolist()).encode()).hexdigest() for name, values in content.items()}

    @property
    def digest(self) -> str:
        """A hash of all of `digests`."""
        return hashlib.sha256(repr(self.digests).encode()).hexdigest()

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of `ids`. Raises one ValueError with all unknown ids."""
        place = {identity: row for row, identity in enumerate(self.ids)}
        unknown = [identity for identity in dict.fromkeys(ids) if identity not in place]
        if unknown:
            shown = ", ".join(unknown[:5]) + (", .." if len(unknown) > 5 else "")
            raise ValueError(
                f"{len(unknown)} products are not in the data ({len(self)} products): {shown}; "
                "is this the table that the lists were made for?"
            )
        return np.array([place[identity] for identity in ids], np.int64)

    def spans(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the pieces of each of `rows` its column of `columns` [B] begins and ends; of `WHOLE`, all pieces."""
        bounds = np.pad(self.column_ends[rows], ((0, 0), (1, 0)))
        firsts, ends = (bounds[np.arange(len(rows)), columns + side] for side in (0, 1))
        return np.where(columns == WHOLE, 0, firsts), np.where(columns == WHOLE, bounds[:, -1], ends)

    def framed_texts(self, rows: np.ndarray, vocabulary: Vocabulary, num_tokens: int) -> np.ndarray:
        """Framed piece ids of `rows`, int32 [len(rows), T]."""
        return np.stack([vocabulary.frame(pieces.tolist(), num_tokens) for pieces, _ in self.pieces(rows)])

    def text_codes(self) -> np.ndarray:
        """[N] int: equal numbers for texts with exactly the same pieces, including those after the length limit."""
        codes: dict[bytes, int] = {}
        texts = self.pieces(np.arange(len(self)))
        return np.array([codes.setdefault(pieces.tobytes(), len(codes)) for pieces, _ in texts])

    @property
    @abc.abstractmethod
    def home(self) -> Path:
        """The folder that holds report and skipped rows."""

    @abc.abstractmethod
    def report(self) -> dict:
        """The report of the preparation: {"splits": {split: count}, "skipped": {reason: count}, ..}."""

    @property
    @abc.abstractmethod
    def stored(self) -> np.ndarray | None:
        """What a step reads for images as one memory-mapped array [N, ..]; None where images are encoded."""

    @property
    @abc.abstractmethod
    def holds_features(self) -> bool:
        """Whether `images` gives patch features, which the data's source gave in place of images."""

    @abc.abstractmethod
    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Piece ids and their word numbers of each of `rows`, int32, of any length, without [CLS] and [SEP]."""

    @abc.abstractmethod
    def strings(self, rows: np.ndarray) -> list[str]:
        """The texts of `rows`."""

    @abc.abstractmethod
    def products(self, rows: Sequence[int]) -> list[Product]:
        """The products of `rows` with text and encoded image (b"" where the split holds features)."""

    @abc.abstractmethod
    def images(self, rows: np.ndarray, size: int, batch_size: int, fit: str = "squash") -> Iterator[np.ndarray]:
        """Batches of images of `rows` in order, uint8 [batch_size, S, S, 3], or features, float16 [batch_size, P, C].

        `fit`: how a picture becomes S x S (config.patches.fit).
        """

    def several_images(
        self, rows: np.ndarray, size: int, batch_size: int, fit: str, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of `most` pictures of each of `rows`, uint8 [b, M, S, S, 3], and which of them are there, [b, M].

        The first always is. Raises ValueError where the split holds one picture of a product.
        """
        raise ValueError(f"{self.home} holds one picture of a product: data.max_images needs records (leave it at 1)")

    @abc.abstractmethod
    def train_batches(
        self,
        sampler: Sampler,
        vocabulary: Vocabulary,
        *,
        num_steps: int,
        image_size: int,
        with_negatives: bool,
        fit: str = "squash",
        start: int = 0,
        features: np.ndarray | None = None,
        share: np.ndarray | None = None,
        only_rows: bool = False,
    ) -> Iterator[Batch]:
        """Batches of host arrays for steps start, .. num_steps - 1, each padded to `sampler.text_tokens`.

        Of a text that `sampler.columns` reduces to a column, a batch has this column's pieces, its words from 0.
        `features` [N, P, C]: cached patch features that replace images. `share` [b]: the rows of each global batch for
        this process (default: all). `only_rows`: a batch has the rows of images, int32 [b], in place of images, which
        are on the device. A generator: close it to end its reading ahead.
        """
