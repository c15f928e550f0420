"""Scores of (text, image) pairs by late interaction: each text and each image is read once, a pair by their tokens."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from fbjax.core.batching import mixed_batches
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import batch_size, embed_batches
from fbjax.model.fashionbert import FashionBert
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

BUCKET = 8  # pads a batch's texts to a multiple of this, so that few programs are compiled
CPU_ROWS, ACCELERATOR_ROWS = 32, 256  # texts or images of a batch
PAIRS_A_ROW = 8  # pairs of a batch for each text or image of one: a pair is little work, once both are read


class TokenScorer:
    """Scores with any parameters of one model: `variables` hold "fashionbert" and "patches"."""

    def __init__(self, model: FashionBert, patches: PatchNetwork, mesh, rows_per_batch: int | None = None):
        self.mesh = mesh
        self.batch_size = batch_size(mesh, rows_per_batch, CPU_ROWS, ACCELERATOR_ROWS)
        self._num_pairs = PAIRS_A_ROW * self.batch_size
        self._size = next(task for task in model.tasks if task.late_interaction).embedding_dim

        def apply(variables, *arrays, method):
            return model.apply({"params": variables["fashionbert"]}, *arrays, method=method)

        def words(variables, ids):
            return apply(variables, apply(variables, ids, method="embed_text"), ids != PAD_ID, method="words")

        def regions(variables, images):
            return apply(variables, patches.apply(variables["patches"], images), method="regions")

        def score(variables, words, mask, regions):
            return apply(variables, words, mask, regions, method="token_scores")

        across, whole = by_example(mesh), replicated(mesh)
        read = partial(jax.jit, in_shardings=(None, across), out_shardings=whole)
        self._regions, self._words = read(regions), read(words)
        self._score = jax.jit(score, in_shardings=(None, across, across, across), out_shardings=whole)

    def embed_images(self, variables: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Regions [I, P, E] of batches of at most `batch_size` images (or cached features)."""
        found = embed_batches(partial(self._regions, variables), batches, self.batch_size, self.mesh)
        return np.concatenate([np.asarray(rows) for rows in found])

    def score(
        self,
        variables: Any,
        ids: np.ndarray,
        images: jax.Array | np.ndarray,
        pairs: np.ndarray,
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Scores [N] of `pairs` [N, 2]: (row of ids [.., T], row of regions [I, P, E])."""
        words, images = self._embed_texts(variables, ids), np.asarray(images)
        scores = np.empty(len(pairs), np.float32)
        starts = range(0, len(pairs), self._num_pairs)
        for start in progress(starts, len(starts), "scoring") if progress else starts:
            part = slice(start, start + self._num_pairs)
            scores[part] = self._launch(variables, ids, words, images, pairs[part])[: len(scores[part])]
        return scores

    def expected_seconds(
        self, variables: Any, ids: np.ndarray, images: jax.Array | np.ndarray, pairs: np.ndarray
    ) -> float:
        """How long `score` will take, from one timed batch of pairs and one of texts (compiled first)."""
        some, texts = pairs[: self._num_pairs], ids[: self.batch_size]
        self._launch(variables, ids, words := self._embed_texts(variables, texts), np.asarray(images[:1]), 0 * some)
        start = time.perf_counter()
        self._embed_texts(variables, texts)
        of_texts = (time.perf_counter() - start) * len(ids) / len(texts)
        start = time.perf_counter()
        self._launch(variables, ids, words, np.asarray(images[:1]), 0 * some)
        return of_texts + (time.perf_counter() - start) * len(pairs) / len(some)

    def _embed_texts(self, variables: Any, ids: np.ndarray) -> np.ndarray:
        """Words [N, T, E] of framed piece ids [N, T]; 0 behind the padded length of a text's batch."""
        lengths, words = (ids != PAD_ID).sum(axis=1), np.zeros((*ids.shape, self._size), np.float32)
        for length, rows in mixed_batches(lengths, self.batch_size, BUCKET, ids.shape[1]):
            batch = put_batch(pad_rows(ids[rows, :length], self.batch_size), self.mesh)
            words[rows, :length] = np.asarray(self._words(variables, batch))[: len(rows)]
        return words

    def _launch(self, variables, ids, words, images, pairs) -> np.ndarray:
        texts, rows = pad_rows(pairs, self._num_pairs).T
        inputs = words[texts], ids[texts] != PAD_ID, images[rows]
        return np.asarray(self._score(variables, *put_batch(inputs, self.mesh)))
