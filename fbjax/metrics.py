"""Retrieval and matching figures from scores: pure NumPy, ties always against us (facts: section 6 of the paper)."""

import numpy as np

RANKS = (1, 5, 10, 101)
NUM_RESAMPLES, SEED = 1000, 0


def rank_of_positive(positive: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``1 + |{others >= positive}|``: positive [Q], others [Q, G-1] -> [Q]. Missing others are -inf."""
    _check_finite(positive, others[others != -np.inf])
    return 1 + (others >= positive[:, None]).sum(axis=1)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """``P(positive > negative)`` over all pairs; a tie counts as lost."""
    _check_finite(positive, negative)
    below = np.searchsorted(np.sort(negative), positive, side="left")
    return float(below.sum() / (len(positive) * len(negative)))


def interval(statistic, *samples: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of ``statistic(*samples)``, rows resampled together."""
    rng = np.random.default_rng(SEED)
    draws = rng.integers(len(samples[0]), size=(NUM_RESAMPLES, len(samples[0])))
    values = [statistic(*(sample[draw] for sample in samples)) for draw in draws]
    return tuple(float(v) for v in np.quantile(values, [0.025, 0.975]))


def retrieval(positive: np.ndarray, others: np.ndarray) -> dict:
    """``{"rank@1": .., "rank@1.ci": [lo, hi], ...}`` as fractions of Q."""
    ranks = rank_of_positive(positive, others)
    figures = {}
    for k in RANKS:
        figures[f"rank@{k}"] = float((ranks <= k).mean())
        if k < RANKS[-1]:
            figures[f"rank@{k}.ci"] = list(interval(lambda hit: hit.mean(), ranks <= k))
    return figures


def matching(positive: np.ndarray, negative: np.ndarray) -> dict:
    """Balanced accuracy at logit difference 0, and AUC, of as many positives as negatives, with intervals."""

    def balanced(p, n):
        return float(((p > 0).mean() + (n < 0).mean()) / 2)

    return {
        "accuracy": balanced(positive, negative),
        "accuracy.ci": list(interval(balanced, positive, negative)),
        "auc": auc(positive, negative),
        "auc.ci": list(interval(auc, positive, negative)),
    }


def _check_finite(*scores: np.ndarray) -> None:
    if not all(np.isfinite(part).all() for part in scores):
        raise ValueError("scores are not finite: the checkpoint is broken")
