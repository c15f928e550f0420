"""A sample of the validation split, scored at each save."""

from typing import Any

import numpy as np

from fbjax.data.batches.negatives import NegativeSampler
from fbjax.data.batches.split import Split
from fbjax.evaluation import metrics
from fbjax.inference.embedder import Embedder
from fbjax.inference.pair_scorer import PairScorer
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.run import Run


class ValidationSample:
    """A fixed sample of the validation split, scored during training: AUC of true against same-category pairs."""

    def __init__(self, run: Run, records: Split, scorer: PairScorer | Embedder, num_products: int):
        rng = np.random.default_rng(run.config.train.seed)
        rows = np.sort(rng.permutation(len(records))[:num_products])
        negatives = NegativeSampler(records.categories, records.groups)
        others = negatives.draw(rows, rng.random(len(rows)), np.zeros(len(rows), bool))
        self._scorer = scorer
        self._ids = text_inputs(run, records, rows)
        images = image_inputs(run, records, np.concatenate([rows, others]), scorer.batch_size)
        self._images = list(images)
        texts = np.arange(len(rows))
        self._pairs = np.concatenate([np.stack([texts, texts], 1), np.stack([texts, texts + len(rows)], 1)])

    def auc(self, variables: Any) -> float:
        embedded = self._scorer.embed_images(variables, self._images)
        scores = self._scorer.score(variables, self._ids, embedded, self._pairs)
        half = len(scores) // 2
        return metrics.auc(scores[:half], scores[half:])
