"""tf.data from prepared records to batches of host arrays: parallel reading, decoding, batching, prefetching.

What is read is decided by `sampling`; here only how. The step is the data position: the stream from step s on is the
tail of the stream from 0.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from fbjax.config.schema import Config
from fbjax.data.batches.batch import Batch
from fbjax.data.batches.sampler import Sampler
from fbjax.data.records.builder import Records
from fbjax.data.sources.tables import Product
from fbjax.data.text.wordpiece import NO_WORD, Vocabulary

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
logging.set_verbosity(logging.ERROR)  # TFDS warns of its own calls
PREFETCH = 4
RECORDS_AT_ONCE = 8192


def train_batches(
    records: Records,
    sampler: Sampler,
    vocabulary: Vocabulary,
    config: Config,
    *,
    start: int,
    features: np.ndarray | None = None,
    share: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches of host arrays for steps start, start + 1, .. num_steps - 1, each padded to `sampler.text_tokens`.

    `features` [N, P, C]: cached patch features to send in place of images. `share` [b]: which rows of each global batch
    this process feeds, by default all.
    """
    read = records.open()
    mismatched = config.tasks.mismatched
    share = np.arange(sampler.batch_size) if share is None else share
    size = config.patches.image_size

    def look_up(step):
        rows, negatives = sampler.batch(int(step))
        num_tokens = sampler.text_tokens(rows)
        rows, negatives = rows[share], negatives[share]
        return (
            np.full(len(share), num_tokens, np.int32),
            rows,
            negatives,
            np.array(read(rows), object),
            np.array(read(negatives) if mismatched and features is None else [b""] * len(share), object),
        )

    def fetch(step):
        types = [tf.int32, tf.int64, tf.int64, tf.string, tf.string]
        return tuple(tf.ensure_shape(x, [len(share)]) for x in tf.numpy_function(look_up, [step], types))

    def parse(num_tokens, row, negative, own, other):
        example = _deserialize(records, own)
        ids, word_ids = _frame(example["pieces"], example["word_ids"], vocabulary, num_tokens)
        if features is not None:
            return row, ids, word_ids, *(row, negative)[: 1 + mismatched]
        images = (example["image"], _deserialize(records, other)["image"]) if mismatched else (example["image"],)
        return row, ids, word_ids, *(_decode(image, size) for image in images)

    def add_features(row, ids, word_ids, *rows_of_images):
        return row, ids, word_ids, *(_gather(features, rows) for rows in rows_of_images)

    dataset = tf.data.Dataset.range(start, config.train.num_steps).map(fetch, num_parallel_calls=2)
    dataset = dataset.unbatch().map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(len(share), drop_remainder=True)
    if features is not None:
        dataset = dataset.map(add_features, num_parallel_calls=2)
    for row, ids, word_ids, image, *negative in dataset.prefetch(PREFETCH).as_numpy_iterator():
        yield Batch(row.astype(np.int32), records.groups[row], ids, word_ids, image, *(negative or [None]))


def read_texts(records: Records, rows: np.ndarray, vocabulary: Vocabulary, num_tokens: int) -> np.ndarray:
    """Framed piece ids of `rows`, int32 [len(rows), T]."""
    return np.stack([vocabulary.frame(pieces.tolist(), num_tokens) for pieces in _field(records, rows, "pieces")])


def read_strings(records: Records, rows: np.ndarray) -> list[str]:
    """The texts of `rows` themselves."""
    return [text.decode() for text in _field(records, rows, "text")]


def text_codes(records: Records) -> np.ndarray:
    """[N] int: rows share a number where all pieces of their texts are the same, those that no model reads too."""
    codes: dict[bytes, int] = {}
    fields = _field(records, np.arange(len(records)), "pieces")
    return np.array([codes.setdefault(pieces.tobytes(), len(codes)) for pieces in fields])


def _field(records: Records, rows: np.ndarray, name: str) -> Iterator:
    """One field of `rows` in order. Records hold images too: only some are in memory at a time."""
    read = records.open()
    for start in range(0, len(rows), RECORDS_AT_ONCE):
        serialized = np.array(read(rows[start : start + RECORDS_AT_ONCE]), object)
        dataset = tf.data.Dataset.from_tensor_slices(serialized)
        dataset = dataset.map(lambda s: _deserialize(records, s)[name], num_parallel_calls=tf.data.AUTOTUNE)
        yield from dataset.as_numpy_iterator()


def read_products(records: Records, rows: Sequence[int]) -> list[Product]:
    """`rows` as a person would look at them: text and encoded image, b"" where the records have none."""
    products = []
    for serialized in records.open()(rows):
        example = {name: value.numpy() for name, value in _deserialize(records, serialized).items()}
        identity, text, category, group = (example[name].decode() for name in ("id", "text", "category", "group"))
        products.append(Product(identity, text, category, group, example.get("image", b""), where=""))
    return products


def read_images(records: Records, rows: np.ndarray, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Images of `rows` in order, uint8 [batch_size, S, S, 3] each, the last batch shorter.

    Of records that hold ready-made features these, float16 [batch_size, P, C].
    """
    read = records.open()
    starts = tf.data.Dataset.range(0, len(rows), batch_size)

    def fetch(start):
        return tf.numpy_function(
            lambda s: np.array(read(rows[s : s + batch_size]), object), [start], tf.string, stateful=False
        )

    dataset = starts.map(fetch, num_parallel_calls=2).unbatch()

    def parse(serialized):
        example = _deserialize(records, tf.ensure_shape(serialized, []))
        return _decode(example["image"], size) if "image" in example else example["features"]

    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    yield from dataset.batch(batch_size).prefetch(PREFETCH).as_numpy_iterator()


def decode_image(encoded: bytes, size: int) -> np.ndarray:
    """One JPEG or PNG as uint8 [S, S, 3], exactly as the pipelines decode it."""
    return _decode(tf.constant(encoded), size).numpy()


def _deserialize(records: Records, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    encoded = {"image": tfds.decode.SkipDecoding()} if "image" in records.features else None
    return records.features.deserialize_example(serialized, decoders=encoded)


def _decode(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear resize to S x S, antialiased when it shrinks; the aspect ratio is not kept, as in the paper."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    image = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _frame(pieces: tf.Tensor, word_ids: tf.Tensor, vocabulary: Vocabulary, num_tokens: tf.Tensor):
    """``[CLS] pieces [SEP] [PAD] ..`` and the word numbers, [T] each; the tf.data form of `Vocabulary.frame`."""
    pieces, word_ids = pieces[: num_tokens - 2], word_ids[: num_tokens - 2]
    ids = tf.concat([[vocabulary.cls_id], pieces, [vocabulary.sep_id]], axis=0)
    ids = tf.pad(ids, [[0, num_tokens - tf.shape(ids)[0]]])
    word_ids = tf.concat([[NO_WORD], word_ids], axis=0)
    word_ids = tf.pad(word_ids, [[0, num_tokens - tf.shape(word_ids)[0]]], constant_values=NO_WORD)
    return ids, word_ids


def _gather(features: np.ndarray, rows: tf.Tensor) -> tf.Tensor:
    gathered = tf.numpy_function(lambda r: np.asarray(features[r]), [rows], tf.as_dtype(features.dtype))
    return tf.ensure_shape(gathered, [rows.shape[0], *features.shape[1:]])
