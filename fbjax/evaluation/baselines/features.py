"""Input of the linear models: TF-IDF of texts and one feature vector per image; and the learned map."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fbjax.data.batches.split import Split
from fbjax.model.grids.pictures import mean_picture
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


def whole_images(run: Run, records: Split) -> np.ndarray:
    """Feature vectors, float32 [N, C]: signed square roots of the whole-image token, or of the mean over patches."""
    patches, vectors = run.feature_input, []
    apply = jax.jit(lambda params, images: mean_picture(patches.apply(params, images), patches.num_images))
    for batch in image_inputs(run, records, np.arange(len(records)), IMAGES_AT_ONCE, "images"):
        features = np.asarray(apply(patches.params, batch), np.float32)
        vectors.append(features[:, 0] if patches.whole_image else features.mean(axis=1))
    vectors = np.concatenate(vectors)
    return np.sign(vectors) * np.sqrt(np.abs(vectors))


def text_features(
    train: Sequence[str], other: Sequence[str], num_directions: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, A] of texts: the leading singular directions on `train` of the TF-IDF of words and word pairs."""
    tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, stop_words="english")
    words = tfidf.fit_transform(train)
    svd = TruncatedSVD(min(num_directions, *words.shape), random_state=seed)
    return svd.fit_transform(words).astype(np.float32), svd.transform(tfidf.transform(other)).astype(np.float32)
