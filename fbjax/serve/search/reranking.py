"""Orders the first products of an answer anew, by a model that reads the query with each of them."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from fbjax.data.log.events import framed_queries
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import PairScorer
from fbjax.inference.query_scorer import TripleScorer
from fbjax.serve.index.collection import Hit
from fbjax.serve.index.features import Features
from fbjax.serve.index.pictures import Pictures

RERANKED = 50  # products


class Reranker:
    """A run that scores pairs: it reads a query with a picture, or with text and picture if it has the task qta."""

    def __init__(self, model: Model, pictures: Pictures):
        self.model, self._features = model, Features(pictures, model)
        self._scorer = PairScorer(model.run.model, model.run.patches.precomputed(), model.mesh)

    @cached_property
    def _triples(self) -> TripleScorer | None:
        run = self.model.run
        aligned = run.objective.aligns_queries
        return TripleScorer(run.model, self.model.mesh, self._scorer.batch_size) if aligned else None

    def scores(self, texts: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[np.ndarray]:
        """Scores [n] of each text's hits, > 0 where a match is likelier; -inf of a product without a picture."""
        products = {hit.product.id: hit.product for some in hits for hit in some}
        features = self._features.of(product.picture for product in products.values())
        seen = {identity: product for identity, product in products.items() if product.picture in features}
        place = {identity: i for i, identity in enumerate(seen)}
        pairs = [
            (query, place[hit.product.id]) for query, some in enumerate(hits) for hit in some if hit.product.id in place
        ]
        scores = [np.full(len(some), -np.inf) for some in hits]
        if not pairs:
            return scores
        images = self._embedded(np.stack([features[product.picture] for product in seen.values()]))
        found = iter(self._scored(texts, [product.text for product in seen.values()], images, np.array(pairs)))
        for mine, some in zip(scores, hits, strict=True):
            for i, hit in enumerate(some):
                if hit.product.id in place:
                    mine[i] = next(found)
        return scores

    def reorder(self, texts: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[tuple[list[Hit], int]]:
        """Each text's hits, the first `RERANKED` of them by their scores, and how many have one; the others follow."""
        scores = self.scores(texts, [some[:RERANKED] for some in hits])
        found = zip(hits, scores, strict=True)
        return [(_reordered(some, mine), int(np.isfinite(mine).sum())) for some, mine in found]

    def _embedded(self, features: np.ndarray) -> np.ndarray:
        size = self._scorer.batch_size
        batches = (features[start : start + size] for start in range(0, len(features), size))
        return np.asarray(self._scorer.embed_images(self.model.variables, batches))

    def _scored(self, queries: Sequence[str], texts: list[str], images: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        run = self.model.run
        if self._triples is None:
            ids = framed_queries(queries, run.vocabulary, run.config.model.text_tokens)
            return self._scorer.score(self.model.variables, ids, images, pairs)
        asked = framed_queries(queries, run.vocabulary, run.config.log.query_tokens)
        ids = framed_queries(texts, run.vocabulary, run.config.model.text_tokens)
        return self._triples.score(self.model.variables, asked, ids, images, pairs)


def _reordered(hits: Sequence[Hit], scores: np.ndarray) -> list[Hit]:
    order = np.argsort(-scores, kind="stable")
    first = [Hit(hits[i].product, float(scores[i])) if scores[i] > -np.inf else hits[i] for i in order]
    return [*first, *hits[len(scores) :]]
