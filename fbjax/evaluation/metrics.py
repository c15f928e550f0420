"""Retrieval and matching figures from scores, in NumPy. Ties always count against the model."""

import math
from collections.abc import Callable, Iterator

import numpy as np

RANKS, WHOLE_LIST = (1, 5, 10), 101
NUM_RESAMPLES, SEED = 1000, 0


def rank_of_positive(positive: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``1 + |{others >= positive}|``: positive [Q], others [Q, G-1] -> [Q]. Missing others are -inf."""
    check_finite(positive, others[others != -np.inf])
    return 1 + (others >= positive[:, None]).sum(axis=1)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """``P(positive > negative)`` over all pairs, ties as 0."""
    check_finite(positive, negative)
    below = np.searchsorted(np.sort(negative), positive, side="left")
    return float(below.sum() / (len(positive) * len(negative)))


def interval(statistic, *samples: np.ndarray, strata: np.ndarray | None = None) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of ``statistic(*samples)``, rows resampled together.

    With `strata` [Q] rows are resampled within each stratum. A mean over labels needs this: otherwise many resamples
    miss a rare label, and the interval misses the estimate.
    """
    rng = np.random.default_rng(SEED)
    if strata is None:
        draws = rng.integers(len(samples[0]), size=(NUM_RESAMPLES, len(samples[0])))
    else:
        draws = _within(strata, rng)
    values = [statistic(*(sample[draw] for sample in samples)) for draw in draws]
    return tuple(float(v) for v in np.quantile(values, [0.025, 0.975]))


def _within(strata: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows [Q] of each resample; every stratum keeps its size."""
    order = np.argsort(strata, kind="stable")
    _, first, place, counts = np.unique(strata[order], return_index=True, return_inverse=True, return_counts=True)
    for _ in range(NUM_RESAMPLES):
        yield order[first[place] + (rng.random(len(order)) * counts[place]).astype(int)]


def retrieval(positive: np.ndarray, others: np.ndarray) -> dict:
    """``{"rank@1": .., "rank@1.ci": [lo, hi], ...}`` as fractions of Q, and "rank@101", which should be 1."""
    ranks = rank_of_positive(positive, others)
    return hit_rates(ranks) | {f"rank@{WHOLE_LIST}": float((ranks <= WHOLE_LIST).mean())}


def hit_rates(ranks: np.ndarray, ending: str = "") -> dict:
    """``{"rank@1": .., "rank@1.ci": [lo, hi], ...}`` of ranks [Q]; `ending` follows "rank@1"."""
    figures = {}
    for k in RANKS:
        figures[f"rank@{k}{ending}"] = float((ranks <= k).mean())
        figures[f"rank@{k}{ending}.ci"] = list(interval(np.mean, ranks <= k))
    return figures


def gains(ranks: np.ndarray, before: np.ndarray) -> dict:
    """``{"gain@1": .., "gain@1.ci": [lo, hi], ...}``: hit rates of ranks [Q] minus those `before`, paired by query."""
    figures = {}
    for k in RANKS:
        difference = (ranks <= k).astype(float) - (before <= k)
        figures[f"gain@{k}"] = float(difference.mean())
        figures[f"gain@{k}.ci"] = list(interval(np.mean, difference))
    return figures


def mean_of(name: str, values: np.ndarray) -> dict:
    """``{name: mean, "name.ci": [lo, hi]}`` of a value a query, [Q]."""
    return {name: float(values.mean()), f"{name}.ci": list(interval(np.mean, values))}


def mean_reciprocal(ranks: np.ndarray, depth: int) -> dict:
    """``{"mrr@depth": .., "mrr@depth.ci": [lo, hi]}`` of ranks [Q]: the mean of 1 / rank, 0 beyond `depth`."""
    return mean_of(f"mrr@{depth}", np.where(ranks <= depth, 1 / ranks, 0.0))


def ratio_of(name: str, above: np.ndarray, below: np.ndarray) -> dict:
    """``{name: .., "name.ci": [lo, hi]}``: the mean of `above` [Q] over that of `below` [Q], paired by query.

    None where `below` has no hit; the interval is [None, None] where a resample has none, as with fewer than about 7.
    """

    def ratio(a, b):
        return float(a.mean() / b.mean()) if b.any() else math.nan

    value, bounds = ratio(above, below), interval(ratio, above, below)
    return {
        name: None if math.isnan(value) else value,
        f"{name}.ci": [None if math.isnan(bound) else bound for bound in bounds],
    }


def spoken(rates: dict, ending: str = "") -> str:
    """``Rank@1 17.7% [15.4%, 20.1%]  Rank@5 ..`` of `hit_rates`."""
    return "  ".join(f"Rank@{k} {with_interval(rates, f'rank@{k}{ending}')}" for k in RANKS)


def with_interval(rates: dict, name: str) -> str:
    """``17.7% [15.4%, 20.1%]`` of the share `name` and its interval."""
    low, high = rates[f"{name}.ci"]
    return f"{rates[name]:.1%} [{low:.1%}, {high:.1%}]"


def spoken_mrr(figures: dict, depth: int) -> str:
    """``MRR@10 0.327 [0.271, 0.384]`` of `mean_reciprocal`."""
    low, high = figures[f"mrr@{depth}.ci"]
    return f"MRR@{depth} {figures[f'mrr@{depth}']:.3f} [{low:.3f}, {high:.3f}]"


def print_row(direction: str, cells: str, say: Callable[[str], None]) -> None:
    """A row of a table of figures: `cells` after the name of the direction."""
    say(f"{direction.replace('_', ' '):14} {cells}")


def print_matching(figures: dict, more: str, say: Callable[[str], None]) -> None:
    """The row of `matching` figures, and `more` of them."""
    low, high = figures["auc.ci"]
    print_row("matching", f"AUC {figures['auc']:.3f} [{low:.3f}, {high:.3f}]{more}", say)


def matching(positive: np.ndarray, negative: np.ndarray, scores_matches: bool = True) -> dict:
    """AUC and its interval; with `scores_matches` (above 0 means "match") also balanced accuracy and its interval."""

    def balanced(p, n):
        return float(((p > 0).mean() + (n < 0).mean()) / 2)

    figures = {"auc": auc(positive, negative), "auc.ci": list(interval(auc, positive, negative))}
    if scores_matches:
        figures["accuracy"] = balanced(positive, negative)
        figures["accuracy.ci"] = list(interval(balanced, positive, negative))
    return figures


def check_finite(*scores: np.ndarray) -> None:
    """Raises ValueError on NaN and infinity."""
    if not all(np.isfinite(part).all() for part in scores):
        raise ValueError("scores are not finite: the checkpoint is broken")
