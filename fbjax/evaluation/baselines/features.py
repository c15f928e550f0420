"""What the linear models read: TF-IDF of texts, one feature vector of an image, and the map that they learn."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fbjax.core.console import progress
from fbjax.data.batches.pipeline import read_strings
from fbjax.data.records.builder import Records
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.run import Run

IMAGES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Map:
    """``features [N, A] -> vectors [N, E]`` of length 1: ``(features - mean) @ matrix``, normalised."""

    mean: np.ndarray  # [A]
    matrix: np.ndarray  # [A, E]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        projected = (features - self.mean) @ self.matrix
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)


def all_strings(records: Records) -> list[str]:
    return read_strings(records, np.arange(len(records)))


def whole_images(run: Run, records: Records) -> np.ndarray:
    """One feature vector of each image, float32 [N, C]: the square root, its sign kept, of its token of the whole image
    or of the mean over its patches."""
    patches, vectors = run.feature_input, []
    apply = jax.jit(patches.apply)
    inputs = image_inputs(run, records, np.arange(len(records)), IMAGES_AT_ONCE)
    for batch in progress(inputs, -(-len(records) // IMAGES_AT_ONCE), "images"):
        features = np.asarray(apply(patches.params, batch), np.float32)
        vectors.append(features[:, 0] if patches.whole_image else features.mean(axis=1))
    vectors = np.concatenate(vectors)
    return np.sign(vectors) * np.sqrt(np.abs(vectors))


def text_features(
    train: Sequence[str], other: Sequence[str], num_directions: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, A] of texts: TF-IDF of words and pairs of words, their leading singular directions on `train`."""
    tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, stop_words="english")
    words = tfidf.fit_transform(train)
    svd = TruncatedSVD(min(num_directions, *words.shape), random_state=seed)
    return svd.fit_transform(words).astype(np.float32), svd.transform(tfidf.transform(other)).astype(np.float32)


def unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
