"""Splits of memory-mapped arrays: batches by NumPy, made ahead by threads. Imports no TensorFlow."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fbjax.config.schema import Config
from fbjax.core.prefetch import prefetched
from fbjax.data.arrays import manifest
from fbjax.data.batches.batch import Batch
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import Product
from fbjax.data.sources.images import encode_array
from fbjax.data.text.wordpiece import NO_WORD, PAD_ID, Vocabulary

BATCHES_AHEAD = 4


def read_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary of `data.arrays`. Raises ValueError where it was made by another model.vocabulary."""
    folder, wanted = Path(config.data.arrays), config.model.vocabulary
    made_by = manifest.read(folder)["vocabulary"]["setting"]
    if made_by != wanted:
        raise ValueError(
            f"data.arrays {folder} has the vocabulary of model.vocabulary {made_by!r}, the config says {wanted!r} "
            "(set it to that, or write other arrays: fbjax prepare --config .. --arrays DIR)"
        )
    return Vocabulary.load(folder / manifest.TOKENIZER)


def open_arrays(config: Config, vocabulary: Vocabulary) -> dict[str, Split]:
    """The splits in `data.arrays`.

    Raises FileNotFoundError or ValueError where the folder is incomplete, or was made of other tables, by other
    settings or for another vocabulary than `config` and `vocabulary`.
    """
    folder = Path(config.data.arrays)
    content = manifest.read(folder)
    manifest.check_fit(folder, content, config)
    theirs = Vocabulary.load(folder / manifest.TOKENIZER)
    if theirs.fingerprint != vocabulary.fingerprint:
        raise ValueError(
            f"data.arrays {folder} has a vocabulary of {theirs.size:,} pieces ({theirs.fingerprint}), the run one of "
            f"{vocabulary.size:,} ({vocabulary.fingerprint}): name the arrays that were written for this run's "
            "vocabulary, or begin another run (another --workdir)"
        )
    splits: dict[str, Split] = {}
    for name, split in content["splits"].items():
        with np.load(folder / name / manifest.INDEX) as index:
            splits[name] = ArraySplit(**index, name=split["name"], folder=folder / name, about=content)
    return splits


@dataclasses.dataclass(frozen=True)
class ArraySplit(Split):
    """One split as arrays in `folder`."""

    folder: Path
    about: dict  # the manifest

    @property
    def home(self) -> Path:
        return self.folder.parent

    def report(self) -> dict:
        return self.about["report"]

    @property
    def holds_features(self) -> bool:
        return (self.folder / manifest.IMAGES[True]).is_file()

    @cached_property
    def stored(self) -> np.ndarray:
        return self._mapped(manifest.IMAGES[self.holds_features])

    @cached_property
    def _texts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pieces and word numbers of all texts, and where each text's begin [N + 1]."""
        return self._mapped("pieces.npy"), self._mapped("word_ids.npy"), self._mapped("offsets.npy")

    def _mapped(self, name: str) -> np.ndarray:
        """An array of the folder, read-only."""
        path = self.folder / name
        mode = "r" if path.stat().st_size > 2**20 else None  # an empty array cannot be mapped
        return np.asarray(np.load(path, mmap_mode=mode))

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pieces, word_ids, offsets = self._texts
        for row in rows:
            part = slice(offsets[row], offsets[row + 1])
            yield pieces[part], word_ids[part]

    def strings(self, rows: np.ndarray) -> list[str]:
        text, offsets = self._mapped("text.npy"), self._mapped("text_offsets.npy")
        return [text[offsets[row] : offsets[row + 1]].tobytes().decode() for row in rows]

    def products(self, rows: Sequence[int]) -> list[Product]:
        names, found = self.category_names[self.categories], []
        for row, text in zip(rows, self.strings(np.asarray(rows)), strict=True):
            image = b"" if self.holds_features else encode_array(self.stored[row])
            found.append(Product(str(self.ids[row]), text, str(names[row]), str(self.groups[row]), image, where=""))
        return found

    def images(self, rows: np.ndarray, size: int, batch_size: int, fit: str = "squash") -> Iterator[np.ndarray]:
        self._check_images(size, fit)
        for start in range(0, len(rows), batch_size):
            yield self.stored[rows[start : start + batch_size]]

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
        self._check_images(image_size, fit)
        images = self.stored if features is None else features

        def make(step: int) -> Batch:
            rows, negatives = sampler.batch(step)
            num_tokens, columns = sampler.text_tokens(step), sampler.columns(step)
            if share is not None:
                rows, negatives, columns = rows[share], negatives[share], columns[share]
            found = [rows, negatives][: 1 + with_negatives]
            found = [of.astype(np.int32) if only_rows else images[of] for of in found]
            ids, word_ids = self._framed(rows, columns, vocabulary, num_tokens)
            return Batch(rows.astype(np.int32), self.groups[rows], ids, word_ids, *(found + [None])[:2])

        return prefetched(make, range(start, num_steps), BATCHES_AHEAD)

    def _framed(
        self, rows: np.ndarray, columns: np.ndarray, vocabulary: Vocabulary, num_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """``[CLS] pieces [SEP] [PAD] ..`` and word numbers, int32 [len(rows), T] each, of `Vocabulary.frame`."""
        pieces, word_ids, offsets = self._texts
        firsts, ends = self.spans(rows, columns)
        starts, kept = offsets[rows] + firsts, np.minimum(ends - firsts, num_tokens - 2)
        tokens = np.arange(num_tokens)
        inside = (tokens >= 1) & (tokens <= kept[:, None])
        places = np.where(inside, starts[:, None] + tokens - 1, starts[:, None])
        words = word_ids[places] - np.where(firsts > 0, word_ids[starts], np.int32(0))[:, None]
        ids = np.where(inside, pieces[places], np.int32(PAD_ID))
        ids[:, 0], ids[np.arange(len(rows)), 1 + kept] = vocabulary.cls_id, vocabulary.sep_id
        return ids, np.where(inside, words, np.int32(NO_WORD))

    def _check_images(self, size: int, fit: str) -> None:
        """Raises ValueError where the pictures have another size or fit."""
        settings = self.about["settings"]
        theirs = settings["patches.image_size"], settings["patches.fit"]
        if not self.holds_features and theirs != (size, fit):
            raise ValueError(f"{self.folder} holds pictures of {theirs[0]} pixels by {theirs[1]}, not {size} by {fit}")
