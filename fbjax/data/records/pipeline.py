"""tf.data from prepared records to batches of host arrays: parallel reading, decoding, batching, prefetching.

A split's order comes from `fbjax.data.batches.sampler`. The step is the data position: the stream from step s is the
tail of the stream from 0.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource

from fbjax.core.checksums import damage
from fbjax.core.paths import as_path
from fbjax.core.resampling import fitted
from fbjax.data.batches.batch import Batch
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import REPORT, Split
from fbjax.data.sources.base import Product
from fbjax.data.sources.foreground import find_foreground, foreground_box
from fbjax.data.sources.images import rewrite
from fbjax.data.text.wordpiece import NO_WORD, Vocabulary

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
logging.set_verbosity(logging.ERROR)  # TFDS warns about its own calls
PREFETCH = 4
RECORDS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class Records(Split):
    """One split as ArrayRecord files."""

    features: tfds.features.FeaturesDict
    files: tuple[str, ...]

    @property
    def home(self) -> Path:
        return as_path(self.files[0]).parent

    def report(self) -> dict:
        return read_report(self.home)

    @contextlib.contextmanager
    def _damage_named(self):
        """Raises ValueError, in one line, in place of what a damaged file makes readers raise."""
        try:
            yield
        except Exception:
            check_records(self.home)
            raise

    @property
    def stored(self) -> None:
        return None

    @property
    def holds_features(self) -> bool:
        return "features" in self.features

    def open(self) -> Callable[[Sequence[int]], list[bytes]]:
        """A reader of serialized records by row."""
        if self.files[0].startswith("s3://"):
            raise ValueError(f"{self.home}: ArrayRecord reads no s3://; copy the folder here, or mount it")
        with self._damage_named():
            source = ArrayRecordDataSource(self.files)
        return lambda rows: source.__getitems__([int(row) for row in rows])

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
        read = self.open()
        share = np.arange(sampler.batch_size) if share is None else share
        decodes = features is None and not only_rows

        def look_up(step):
            rows, negatives = sampler.batch(int(step))
            num_tokens = sampler.text_tokens(int(step))
            rows, negatives = rows[share], negatives[share]
            spans = np.stack(self.spans(rows, sampler.columns(int(step))[share]), axis=1)
            return (
                np.full(len(share), num_tokens, np.int32),
                spans.astype(np.int32),
                rows,
                negatives,
                np.array(read(rows), object),
                np.array(read(negatives) if with_negatives and decodes else [b""] * len(share), object),
            )

        def fetch(step):
            types = [tf.int32, tf.int32, tf.int64, tf.int64, tf.string, tf.string]
            lengths, spans, *others = tf.numpy_function(look_up, [step], types)
            return (
                tf.ensure_shape(lengths, [len(share)]),
                tf.ensure_shape(spans, [len(share), 2]),
                *(tf.ensure_shape(x, [len(share)]) for x in others),
            )

        def parse(num_tokens, span, row, negative, own, other):
            example = self._deserialize(own)
            pieces, words = _cut(example["pieces"], example["word_ids"], span)
            ids, word_ids = _frame(pieces, words, vocabulary, num_tokens)
            if not decodes:
                return row, ids, word_ids, *(row, negative)[: 1 + with_negatives]
            images = (example["image"], self._deserialize(other)["image"]) if with_negatives else (example["image"],)
            return row, ids, word_ids, *(_decode(image, image_size, fit) for image in images)

        def add_features(row, ids, word_ids, *rows_of_images):
            return row, ids, word_ids, *(_gather(features, rows) for rows in rows_of_images)

        dataset = tf.data.Dataset.range(start, num_steps).map(fetch, num_parallel_calls=2).unbatch()
        dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(len(share), drop_remainder=True)
        if features is not None and not only_rows:
            dataset = dataset.map(add_features, num_parallel_calls=2)
        with self._damage_named():
            for row, ids, word_ids, *images in dataset.prefetch(PREFETCH).as_numpy_iterator():
                images = [image.astype(np.int32) for image in images] if only_rows else images
                yield Batch(row.astype(np.int32), self.groups[row], ids, word_ids, *(images + [None])[:2])

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._fields(rows, ("pieces", "word_ids"))

    def strings(self, rows: np.ndarray) -> list[str]:
        return [text.decode() for (text,) in self._fields(rows, ("text",))]

    def _fields(self, rows: np.ndarray, names: tuple[str, ...]) -> Iterator[tuple]:
        """Some fields of `rows` in order. Reads some records at a time, since they contain images."""
        read = self.open()
        for start in range(0, len(rows), RECORDS_AT_ONCE):
            with self._damage_named():
                serialized = np.array(read(rows[start : start + RECORDS_AT_ONCE]), object)

            def parse(record):
                example = self._deserialize(record)
                return tuple(example[name] for name in names)

            dataset = tf.data.Dataset.from_tensor_slices(serialized).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            with self._damage_named():
                yield from dataset.as_numpy_iterator()

    def products(self, rows: Sequence[int]) -> list[Product]:
        found = []
        with self._damage_named():
            read = self.open()(rows)
        for serialized in read:
            example = {name: value.numpy() for name, value in self._deserialize(serialized).items()}
            texts = (example[name].decode() for name in ("id", "text", "category", "group"))
            found.append(Product(*texts, example.get("image", b""), where=""))
        return found

    def images(self, rows: np.ndarray, size: int, batch_size: int, fit: str = "squash") -> Iterator[np.ndarray]:
        read = self.open()

        def fetch(start):
            serialized = lambda s: np.array(read(rows[s : s + batch_size]), object)  # noqa: E731
            return tf.numpy_function(serialized, [start], tf.string, stateful=False)

        def parse(serialized):
            example = self._deserialize(tf.ensure_shape(serialized, []))
            return _decode(example["image"], size, fit) if "image" in example else example["features"]

        dataset = tf.data.Dataset.range(0, len(rows), batch_size).map(fetch, num_parallel_calls=2).unbatch()
        dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        with self._damage_named():
            yield from dataset.batch(batch_size).prefetch(PREFETCH).as_numpy_iterator()

    def foreground_shares(self) -> Iterator[np.ndarray]:
        """Of batches of all pictures in order: the share [B] of each that its foreground's box covers; 0: it has none.

        Only of splits that hold images.
        """
        read = self.open()

        def share(pixels):
            box = find_foreground(pixels)
            return np.float32(box.height * box.width / pixels[..., 0].size if box else 0)

        def parse(serialized):
            pixels = _pixels(self._deserialize(serialized)["image"], accurate=True)
            return tf.ensure_shape(tf.numpy_function(share, [pixels], tf.float32, stateful=False), [])

        for start in range(0, len(self), RECORDS_AT_ONCE):
            serialized = np.array(read(range(start, min(start + RECORDS_AT_ONCE, len(self)))), object)
            dataset = tf.data.Dataset.from_tensor_slices(serialized).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            with self._damage_named():
                yield next(dataset.batch(RECORDS_AT_ONCE).as_numpy_iterator())

    def several_images(
        self, rows: np.ndarray, size: int, batch_size: int, fit: str, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        read = self.open()
        for start in range(0, len(rows), batch_size):
            with self._damage_named():
                serialized = read(rows[start : start + batch_size])
            images = np.zeros((len(serialized), most, size, size, 3), np.uint8)
            there = np.zeros((len(serialized), most), bool)
            for place, record in enumerate(serialized):
                example = self._deserialize(tf.constant(record))
                encoded = [example["image"], *example.get("more_images", ())][:most]
                for number, picture in enumerate(encoded):
                    images[place, number] = _decode(picture, size, fit).numpy()
                there[place, : len(encoded)] = True
            yield images, there

    def _deserialize(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = {"image": tfds.decode.SkipDecoding()} if "image" in self.features else None
        return self.features.deserialize_example(serialized, decoders=encoded)


def check_records(home: Path, names: Iterable[str] | None = None) -> None:
    """Raises ValueError, with the remedy, where files in a folder of records are not as they were written."""
    if found := damage(home, names):
        raise _damaged(home, found)


def read_report(home: Path) -> dict:
    """The report of a preparation. Raises ValueError, with the remedy, where it is damaged."""
    try:
        return json.loads((home / REPORT).read_bytes())
    except ValueError as error:
        raise _damaged(home, f"{REPORT}: {error}") from None


def _damaged(home: Path, found: str) -> ValueError:
    return ValueError(f"the prepared records in {home} are damaged ({found}): delete this folder, it is made anew")


def decode_image(encoded: bytes, size: int, fit: str = "squash") -> np.ndarray:
    """One JPEG or PNG as uint8 [S, S, 3], exactly as the pipelines decode what `decodable` makes of it."""
    try:
        return _decode(tf.constant(encoded), size, fit).numpy()
    except tf.errors.OpError:
        return _decode(tf.constant(rewrite(encoded)), size, fit).numpy()


def decodable(encoded: bytes) -> bytes:
    """An encoded image as the pipelines surely decode it: the same bytes, or another PNG of the same pixels.

    TensorFlow's decoder is stricter than Pillow: it refuses a PNG with a wrong checksum, for example. Raises ValueError
    on what both refuse.
    """
    try:
        _pixels(tf.constant(encoded))
        return encoded
    except tf.errors.OpError:
        return rewrite(encoded)


def _pixels(encoded: tf.Tensor, accurate: bool = False) -> tf.Tensor:
    """uint8 [H, W, 3] of a JPEG or PNG; `accurate`: a JPEG's are those of Pillow, bit for bit."""
    if accurate:
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")  # reads PNG too
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _decode(encoded: tf.Tensor, size: int, fit: str) -> tf.Tensor:
    """Decodes to S x S, bilinear with antialiasing; "squash" changes the aspect ratio, as the paper does.

    A pixel at a threshold decides on a foreground, so that one is found in pixels that are the same without TensorFlow.
    """
    image = _pixels(encoded, accurate=fit == "foreground")
    image.set_shape([None, None, 3])
    new, (height, width) = [size, size], (tf.shape(image)[0], tf.shape(image)[1])
    if fit == "pad":
        new = fitted(height, width, size, tf.maximum)
    elif fit == "crop":
        side = tf.minimum(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif fit == "foreground":
        box = tf.numpy_function(lambda x: np.array(foreground_box(x), np.int32), [image], tf.int32, stateful=False)
        top, left, height, width = tf.unstack(tf.ensure_shape(box, [4]))
        image = image[top : top + height, left : left + width]
    image = tf.image.resize(image, new, antialias=True)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    if fit == "pad":
        top, left = (size - new[0]) // 2, (size - new[1]) // 2
        margins = [[top, size - new[0] - top], [left, size - new[1] - left], [0, 0]]
        image = tf.ensure_shape(tf.pad(image, margins, constant_values=255), [size, size, 3])
    return image


def _cut(pieces: tf.Tensor, word_ids: tf.Tensor, span: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The pieces from the first of `span` up to its end, and their word numbers, from 0 where they begin later."""
    first, end = span[0], span[1]
    return pieces[first:end], word_ids[first:end] - tf.where(first > 0, word_ids[first], 0)


def _frame(pieces: tf.Tensor, word_ids: tf.Tensor, vocabulary: Vocabulary, num_tokens: tf.Tensor):
    """``[CLS] pieces [SEP] [PAD] ..`` and word numbers, [T] each: `Vocabulary.frame` in tf.data."""
    pieces, word_ids = pieces[: num_tokens - 2], word_ids[: num_tokens - 2]
    ids = tf.concat([[vocabulary.cls_id], pieces, [vocabulary.sep_id]], axis=0)
    ids = tf.pad(ids, [[0, num_tokens - tf.shape(ids)[0]]])
    word_ids = tf.concat([[NO_WORD], word_ids], axis=0)
    word_ids = tf.pad(word_ids, [[0, num_tokens - tf.shape(word_ids)[0]]], constant_values=NO_WORD)
    return ids, word_ids


def _gather(features: np.ndarray, rows: tf.Tensor) -> tf.Tensor:
    gathered = tf.numpy_function(lambda r: np.asarray(features[r]), [rows], tf.as_dtype(features.dtype))
    return tf.ensure_shape(gathered, [rows.shape[0], *features.shape[1:]])
