"""tf.data from prepared records to batches of host arrays: parallel reading, decoding, batching, prefetching.

`sampler` chooses the products. The step is the data position: the stream from step s is the tail of the stream from 0.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from fbjax.data.batches.batch import Batch
from fbjax.data.batches.sampler import Sampler
from fbjax.data.records.builder import Records
from fbjax.data.sources.base import Product
from fbjax.data.text.wordpiece import NO_WORD, Vocabulary

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
logging.set_verbosity(logging.ERROR)  # TFDS warns about its own calls
PREFETCH = 4
RECORDS_AT_ONCE = 8192


def train_batches(
    records: Records,
    sampler: Sampler,
    vocabulary: Vocabulary,
    *,
    num_steps: int,
    image_size: int,
    with_negatives: bool,
    start: int = 0,
    features: np.ndarray | None = None,
    share: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches of host arrays for steps start, start + 1, .. num_steps - 1, each padded to `sampler.text_tokens`.

    `features` [N, P, C]: cached patch features that replace images. `share` [b]: the rows of each global batch for this
    process (default: all).
    """
    read = records.open()
    share = np.arange(sampler.batch_size) if share is None else share

    def look_up(step):
        rows, negatives = sampler.batch(int(step))
        num_tokens = sampler.text_tokens(rows)
        rows, negatives = rows[share], negatives[share]
        return (
            np.full(len(share), num_tokens, np.int32),
            rows,
            negatives,
            np.array(read(rows), object),
            np.array(read(negatives) if with_negatives and features is None else [b""] * len(share), object),
        )

    def fetch(step):
        types = [tf.int32, tf.int64, tf.int64, tf.string, tf.string]
        return tuple(tf.ensure_shape(x, [len(share)]) for x in tf.numpy_function(look_up, [step], types))

    def parse(num_tokens, row, negative, own, other):
        example = _deserialize(records, own)
        ids, word_ids = _frame(example["pieces"], example["word_ids"], vocabulary, num_tokens)
        if features is not None:
            return row, ids, word_ids, *(row, negative)[: 1 + with_negatives]
        images = (example["image"], _deserialize(records, other)["image"]) if with_negatives else (example["image"],)
        return row, ids, word_ids, *(_decode(image, image_size) for image in images)

    def add_features(row, ids, word_ids, *rows_of_images):
        return row, ids, word_ids, *(_gather(features, rows) for rows in rows_of_images)

    dataset = tf.data.Dataset.range(start, num_steps).map(fetch, num_parallel_calls=2)
    dataset = dataset.unbatch().map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(len(share), drop_remainder=True)
    if features is not None:
        dataset = dataset.map(add_features, num_parallel_calls=2)
    for row, ids, word_ids, image, *negative in dataset.prefetch(PREFETCH).as_numpy_iterator():
        yield Batch(row.astype(np.int32), records.groups[row], ids, word_ids, image, *(negative or [None]))


def read_texts(records: Records, rows: np.ndarray, vocabulary: Vocabulary, num_tokens: int) -> np.ndarray:
    """Framed piece ids of `rows`, int32 [len(rows), T]."""
    return np.stack([vocabulary.frame(pieces.tolist(), num_tokens) for pieces in _field(records, rows, "pieces")])


def read_strings(records: Records, rows: np.ndarray) -> list[str]:
    """The texts of `rows`."""
    return [text.decode() for text in _field(records, rows, "text")]


def text_codes(records: Records) -> np.ndarray:
    """[N] int: equal numbers for texts with exactly the same pieces, including those after the length limit."""
    codes: dict[bytes, int] = {}
    fields = _field(records, np.arange(len(records)), "pieces")
    return np.array([codes.setdefault(pieces.tobytes(), len(codes)) for pieces in fields])


def _field(records: Records, rows: np.ndarray, name: str) -> Iterator:
    """One field of `rows` in order. Reads some records at a time, since they contain images."""
    read = records.open()
    for start in range(0, len(rows), RECORDS_AT_ONCE):
        serialized = np.array(read(rows[start : start + RECORDS_AT_ONCE]), object)
        dataset = tf.data.Dataset.from_tensor_slices(serialized)
        dataset = dataset.map(lambda s: _deserialize(records, s)[name], num_parallel_calls=tf.data.AUTOTUNE)
        yield from dataset.as_numpy_iterator()


def read_products(records: Records, rows: Sequence[int]) -> list[Product]:
    """The products of `rows` with text and encoded image (b"" if the records have features)."""
    products = []
    for serialized in records.open()(rows):
        example = {name: value.numpy() for name, value in _deserialize(records, serialized).items()}
        texts = (example[name].decode() for name in ("id", "text", "category", "group"))
        products.append(Product(*texts, example.get("image", b""), where=""))
    return products


def read_images(records: Records, rows: np.ndarray, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of images of `rows` in order, uint8 [batch_size, S, S, 3], or features, float16 [batch_size, P, C]."""
    read = records.open()

    def fetch(start):
        serialized = lambda s: np.array(read(rows[s : s + batch_size]), object)  # noqa: E731
        return tf.numpy_function(serialized, [start], tf.string, stateful=False)

    def parse(serialized):
        example = _deserialize(records, tf.ensure_shape(serialized, []))
        return _decode(example["image"], size) if "image" in example else example["features"]

    dataset = tf.data.Dataset.range(0, len(rows), batch_size).map(fetch, num_parallel_calls=2).unbatch()
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    yield from dataset.batch(batch_size).prefetch(PREFETCH).as_numpy_iterator()


def decode_image(encoded: bytes, size: int) -> np.ndarray:
    """One JPEG or PNG as uint8 [S, S, 3], exactly as the pipelines decode it."""
    return _decode(tf.constant(encoded), size).numpy()


def _deserialize(records: Records, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    encoded = {"image": tfds.decode.SkipDecoding()} if "image" in records.features else None
    return records.features.deserialize_example(serialized, decoders=encoded)


def _decode(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Decodes and resizes to S x S, bilinear with antialiasing; changes the aspect ratio, as the paper does."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    image = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


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
