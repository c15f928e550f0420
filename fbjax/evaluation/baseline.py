"""Linear models on the same records, image features, lists and figures: CCA, and VSE, which the paper compares with.

A text is the TF-IDF of its words and pairs of words, reduced to its leading singular directions; an image is one
feature vector of the patch network: the token of the whole image, or the mean over the patches. Each family learns a
linear map of either into one space; the score of a pair is the cosine there.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fbjax.config import Config
from fbjax.console import progress, say
from fbjax.data.catalogue import Records, prepare
from fbjax.data.pipeline import read_strings, text_codes
from fbjax.data.source import Source
from fbjax.evaluation.gallery import full_figures
from fbjax.evaluation.protocols import list_figures, read_request
from fbjax.features import image_inputs
from fbjax.workdir import Run, make_vocabulary

MARGIN, BATCH, EPOCHS, LEARNING_RATE = 0.2, 128, 30, 1e-3  # of VSE
IMAGES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Map:
    """``features [N, A] -> vectors [N, E]`` of length 1: ``(features - mean) @ matrix``, normalised."""

    mean: np.ndarray  # [A]
    matrix: np.ndarray  # [A, E]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        projected = (features - self.mean) @ self.matrix
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)


def baseline(
    family: str,
    config: Config,
    *,
    candidates: str | None,
    protocols: tuple[str, ...],
    num_queries: int | None,
    seed: int,
    dims: int,
    ridge: float,
    num_directions: int,
    hardest: bool,
) -> dict:
    """The figures of "cca" or "vse", fitted on a config's training split, on its validation split.

    `dims` and `num_directions` (of the SVD) are upper bounds: a small catalogue has fewer.
    """
    wrong = {"--dims": dims < 1, "--svd": num_directions < 1, "--ridge": ridge <= 0, "--seed": seed < 0}
    if any(wrong.values()):
        raise ValueError(f"{', '.join(flag for flag in wrong if wrong[flag])}: give a number above 0 (a seed from 0)")
    if hardest and family != "vse":
        raise ValueError(f"--hardest is for vse, not for {family}")
    lists = read_request(protocols, candidates, num_queries)
    run = Run.build(config, make_vocabulary(config, say), None)
    splits = prepare(Source.from_config(config), run.vocabulary, config.data.prepared, progress)
    train, validation = splits["train"], splits["validation"]
    images, own_images = whole_images(run, train), whole_images(run, validation)
    say(f"texts: TF-IDF and its {num_directions} leading directions")
    texts, own_texts = text_features(*(_strings(records) for records in (train, validation)), num_directions, seed)
    say(f"fitting {family} on {len(train):,} products, text {texts.shape[1]}, image {images.shape[1]} dimensions")
    if family == "cca":
        text_map, image_map = fit_cca(texts, images, dims, ridge)
    else:
        text_map, image_map = fit_vse(texts, images, train.groups, dims, hardest, seed)
    text_vectors, image_vectors = text_map(own_texts), image_map(own_images)

    def cosines(pairs: np.ndarray) -> np.ndarray:
        parts = np.array_split(pairs, -(-len(pairs) // 4096))
        return np.concatenate([np.einsum("ne,ne->n", text_vectors[p[:, 0]], image_vectors[p[:, 1]]) for p in parts])

    figures, _ = list_figures(validation, protocols, lists, num_queries, cosines, decides=False)
    if "full" in protocols:
        codes = text_codes(validation)
        figures["full"] = full_figures(text_vectors, image_vectors, validation.groups, num_queries, text_codes=codes)
    return figures


def _strings(records: Records) -> list[str]:
    return read_strings(records, np.arange(len(records)))


def whole_images(run: Run, records: Records) -> np.ndarray:
    """One feature vector of each image, float32 [N, C]: the square root, its sign kept, of its token of the whole image
    or of the mean over its patches."""
    patches, vectors = run.step_patches, []
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


def fit_cca(texts: np.ndarray, images: np.ndarray, dims: int, ridge: float) -> tuple[Map, Map]:
    """Canonical correlation analysis (Hotelling 1936) of ``texts [N, A], images [N, B]``.

    Covariances get `ridge` times the mean variance on their diagonals. Each of the `dims` canonical directions counts
    by its correlation, as in Gong et al. 2014 (arXiv 1212.4522), with the power 1 where they take 4.
    """
    texts, images = texts.astype(np.float64), images.astype(np.float64)
    means = texts.mean(axis=0), images.mean(axis=0)
    texts, images = texts - means[0], images - means[1]
    factors = [_cholesky(x.T @ x / len(x), ridge) for x in (texts, images)]
    # L^-1 whitens: S = L_t^-1 C_ti L_i^-T
    crossed = np.linalg.solve(factors[0], texts.T @ images / len(texts))
    crossed = np.linalg.solve(factors[1], crossed.T).T
    left, correlations, right = np.linalg.svd(crossed, full_matrices=False)
    sides = zip(means, factors, (left, right.T), strict=True)
    return tuple(Map(m, np.linalg.solve(f.T, side[:, :dims]) * correlations[:dims]) for m, f, side in sides)


def _cholesky(covariance: np.ndarray, ridge: float) -> np.ndarray:
    return np.linalg.cholesky(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))


def fit_vse(
    texts: np.ndarray, images: np.ndarray, groups: np.ndarray, dims: int, hardest: bool, seed: int
) -> tuple[Map, Map]:
    """Visual-semantic embedding (Faghri et al. 2018, arXiv 1707.05612): a hinge loss between a pair and its negatives.

    VSE0 sums over the negatives in the batch, VSE++ takes the `hardest` one; products of one group (`groups` [N]) are
    never contrasted. Simplified: the text side is linear over TF-IDF directions in place of a GRU over words, the image
    network stays as it is, features are standardised, and the embeddings of texts and images both have length 1.
    Margin, batch, epochs and the rate's fall to a tenth half-way are those of the authors' release; the rate (1e-3 for
    2e-4), 512 dimensions for 1,024 and no clipping are ours.
    """
    texts, images = (jnp.asarray(x, jnp.float32) for x in (texts, images))
    means, deviations = ([np.asarray(f(x, axis=0)) for x in (texts, images)] for f in (jnp.mean, jnp.std))
    deviations = [np.maximum(d, 1e-6) for d in deviations]
    batch = min(BATCH, len(groups))
    rng = np.random.default_rng(seed)
    per_epoch = len(groups) // batch
    order = np.stack([rng.permutation(len(groups))[: per_epoch * batch] for _ in range(EPOCHS)]).reshape(-1, batch)
    starts = jax.random.split(jax.random.key(seed))
    matrices = [
        jax.nn.initializers.glorot_uniform()(key, (x.shape[1], dims))
        for key, x in zip(starts, (texts, images), strict=True)
    ]
    optimizer = optax.adam(optax.piecewise_constant_schedule(LEARNING_RATE, {len(order) // 2: 0.1}))

    def loss(matrices, text, image, group):
        sides = zip((text, image), means, deviations, matrices, strict=True)
        text, image = (_unit((x - m) / d @ w) for x, m, d, w in sides)
        return hinge_loss(text @ image.T, group[:, None] != group, hardest)

    @jax.jit
    def fit(matrices, texts, images, groups, order):
        def step(carry, rows):
            matrices, state = carry
            value, gradient = jax.value_and_grad(loss)(matrices, texts[rows], images[rows], groups[rows])
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(matrices, updates), state), value

        (matrices, _), values = jax.lax.scan(step, (matrices, optimizer.init(matrices)), order)
        return matrices, values

    matrices, values = fit(matrices, texts, images, jnp.asarray(groups), jnp.asarray(order))
    say(f"loss of the first and the last epoch: {values[:per_epoch].mean():.2f}, {values[-per_epoch:].mean():.2f}")
    return tuple(Map(m, np.asarray(w) / d[:, None]) for m, w, d in zip(means, matrices, deviations, strict=True))


def hinge_loss(cosines: jax.Array, apart: jax.Array, hardest: bool) -> jax.Array:
    """``mean_i sum or max_j [margin - s_ii + s_ij]_+``, both ways: ``cosines [B, B], apart [B, B] -> []``.

    j runs over the products that are `apart` from i.
    """
    own = jnp.diagonal(cosines)
    total = 0.0
    for axis, mine in ((1, own[:, None]), (0, own[None])):
        cost = jnp.where(apart, jnp.maximum(MARGIN - mine + cosines, 0.0), 0.0)
        total += (cost.max(axis=axis) if hardest else cost.sum(axis=axis)).mean()
    return total


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
