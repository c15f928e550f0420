"""A sample of the validation split, scored at each save."""

from typing import Any

import numpy as np

from fbjax.data.batches.negatives import NegativeSampler
from fbjax.data.batches.split import Split
from fbjax.evaluation import metrics
from fbjax.inference.embedder import Embedder
from fbjax.inference.pair_scorer import PairScorer
from fbjax.inference.token_scorer import TokenScorer
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.run import Run


class ValidationSample:
    """A fixed sample of the validation split, scored during training.

    "auc": of true against same-category pairs. For towers also "mrr": of each product's own image among the sample's,
    found by its text, and the other way round; they are to find one product among many, which an AUC hardly shows.
    """

    def __init__(self, run: Run, records: Split, scorer: PairScorer | TokenScorer | Embedder, num_products: int):
        rng = np.random.default_rng(run.config.train.seed)
        rows = np.sort(rng.permutation(len(records))[:num_products])
        negatives = NegativeSampler(records.categories, records.groups)
        others = negatives.draw(rows, rng.random(len(rows)), np.zeros(len(rows), bool))
        self._scorer, self._groups, self.size = scorer, records.groups[rows], len(rows)
        self._ids = text_inputs(run, records, rows)
        images = image_inputs(run, records, np.concatenate([rows, others]), scorer.batch_size)
        self._images = list(images)
        texts = np.arange(len(rows))
        self._pairs = np.concatenate([np.stack([texts, texts], 1), np.stack([texts, texts + len(rows)], 1)])

    def figures(self, variables: Any) -> dict[str, float]:
        embedded = self._scorer.embed_images(variables, self._images)
        scores = self._scorer.score(variables, self._ids, embedded, self._pairs)
        half = len(scores) // 2
        found = {"auc": metrics.auc(scores[:half], scores[half:])}
        if isinstance(self._scorer, Embedder):
            texts = self._scorer.embed_texts(variables, self._ids)
            found["mrr"] = mean_reciprocal_rank(texts @ embedded[:half].T, self._groups)
        return found


def mean_reciprocal_rank(cosines: np.ndarray, groups: np.ndarray) -> float:
    """Of the diagonal of ``cosines [N, N]``, by row and by column; ties count against it, its group not at all."""
    own = np.diagonal(cosines)
    others = groups[:, None] != groups
    ranks = [1 + ((x >= own[:, None]) & others).sum(axis=1) for x in (cosines, cosines.T)]
    return float(np.mean([1 / rank for rank in ranks]))
