"""Orders the first products of an answer anew, by a model that reads the query with each of them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

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

    def __init__(self, model: Model, pictures: Pictures, folder: Path):
        """`folder`: where patch features are kept. Raises ValueError where the run scores no pairs."""
        if not model.run.scores_pairs:
            raise ValueError(f"the run {model.workdir} scores no pairs, so it cannot re-rank: train tia or qta")
        self._model, self._pictures, self._features = model, pictures, Features(folder, model)
        self._scorer = PairScorer(model.run.model, model.run.patches.precomputed(), model.mesh)

    @cached_property
    def _triples(self) -> TripleScorer | None:
        run = self._model.run
        aligned = run.objective.aligns_queries
        return TripleScorer(run.model, self._model.mesh, self._scorer.batch_size) if aligned else None

    def scores(self, texts: Sequence[str], hits: Sequence[Sequence[Hit]]) -> list[np.ndarray]:
        """Scores [n] of each text's hits, > 0 where a match is likelier; -inf of a product without a picture."""
        products = {hit.product.id: hit.product for some in hits for hit in some}
        features = self._features.of((product.picture for product in products.values()), self._pictures)
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

    def _embedded(self, features: np.ndarray) -> np.ndarray:
        size = self._scorer.batch_size
        batches = (features[start : start + size] for start in range(0, len(features), size))
        return np.asarray(self._scorer.embed_images(self._model.variables, batches))

    def _scored(self, queries: Sequence[str], texts: list[str], images: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        run = self._model.run
        if self._triples is None:
            ids = framed_queries(queries, run.vocabulary, run.config.model.text_tokens)
            return self._scorer.score(self._model.variables, ids, images, pairs)
        asked = framed_queries(queries, run.vocabulary, run.config.log.query_tokens)
        ids = framed_queries(texts, run.vocabulary, run.config.model.text_tokens)
        return self._triples.score(self._model.variables, asked, ids, images, pairs)
