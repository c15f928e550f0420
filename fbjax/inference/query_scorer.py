"""Match scores of queries and products: by all three of query, title and image, or by query and image.

A run that has learned the first (task qta) reads the query behind the title. Any other run that scores pairs takes the
query in the title's place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.core.batching import mixed_batches
from fbjax.data.batches.split import Split
from fbjax.data.log.events import framed_queries
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.pair_scorer import BUCKET, PairScorer
from fbjax.inference.token_scorer import TokenScorer
from fbjax.model.fashionbert import FashionBert, match_score
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.run import Run


def match_triples(model: FashionBert, params: dict, query: jax.Array, ids: jax.Array, image: jax.Array) -> jax.Array:
    """Logits [B, 2] of queries [B, Q], titles [B, T], framed piece ids both, and image embeddings [B, P, D]."""
    apply = partial(model.apply, {"params": params})
    text = jnp.concatenate([apply(ids, method="embed_text"), apply(query, is_query=True, method="embed_text")], 1)
    mask = jnp.concatenate([ids != PAD_ID, query != PAD_ID], 1)
    hidden, means = apply(text, mask, image, jnp.zeros_like(ids[:, :1]), method="encode_pair")
    return apply(hidden[:, 0], means, method="match_logits")


class TripleScorer:
    """Scores of (query, title, image), with any parameters of a model that has learned to align queries."""

    def __init__(self, model: FashionBert, mesh, batch_size: int):
        def score(variables, query, ids, image):
            return match_score(match_triples(model, variables["fashionbert"], query, ids, image))

        across = by_example(mesh)
        self._mesh, self._size = mesh, batch_size
        self._score = jax.jit(score, in_shardings=(None, *[across] * 3), out_shardings=replicated(mesh))

    def score(
        self,
        variables: Any,
        queries: np.ndarray,
        ids: np.ndarray,
        images: np.ndarray,
        triples: np.ndarray,
        progress: Callable | None = None,
    ) -> np.ndarray:
        """Logit differences [N] of `triples` [N, 2]: (row of queries [.., Q], row of ids [.., T] and of images).

        Images are image embeddings [.., P, D].
        """
        found = np.empty(len(triples), np.float32)
        batches = mixed_batches((ids != PAD_ID).sum(axis=1)[triples[:, 1]], self._size, BUCKET, ids.shape[1])
        for length, members in progress(batches, len(batches), "scoring") if progress else batches:
            asked, rows = pad_rows(triples[members], self._size).T
            placed = put_batch((queries[asked], ids[rows, :length], images[rows]), self._mesh)
            found[members] = np.asarray(self._score(variables, *placed))[: len(members)]
        return found


class QueryScorer:
    """Scores of Q queries, each with the products of its list, ``lists [Q, n]`` rows of `records`; -1: none."""

    def __init__(
        self, run: Run, records: Split, scorer: PairScorer | TokenScorer, queries: list[str], lists: np.ndarray
    ):
        self._run, self._records, self._scorer, self._lists = run, records, scorer, lists
        self._aligned = run.objective.aligns_queries
        num_tokens = run.config.log.query_tokens if self._aligned else run.config.model.text_tokens
        self._queries = framed_queries(queries, run.vocabulary, num_tokens)
        self._rows, places = np.unique(lists[lists >= 0], return_inverse=True)
        self._pairs = np.stack([np.nonzero(lists >= 0)[0], places.reshape(-1)], axis=1)  # (query, place in `_rows`)

    def scores(self, variables: Any, progress: Callable | None = None) -> np.ndarray:
        """Scores [Q, n], -inf where a list has ended."""
        run, scorer = self._run, self._scorer
        inputs = image_inputs(run, self._records, self._rows, scorer.batch_size)
        images = scorer.embed_images(variables, inputs)
        if self._aligned:
            ids, triples = (
                text_inputs(run, self._records, self._rows),
                TripleScorer(run.model, scorer.mesh, scorer.batch_size),
            )
            found = triples.score(variables, self._queries, ids, np.asarray(images), self._pairs, progress)
        else:
            found = scorer.score(variables, self._queries, images, self._pairs, progress)
        scores = np.full(self._lists.shape, -np.inf, np.float32)
        scores[self._lists >= 0] = found
        return scores
