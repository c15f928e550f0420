"""Calibration: whether match scores, read as probabilities, are right as often as they say (Guo et al., ICML 2017).

A score is a difference of logits; ``sigmoid(score / temperature + bias)`` is the probability of a match, where half of
the pairs are matches. Temperature and bias are fitted on some of the queries (Platt 1999), and every error is measured
on the others.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from fbjax.evaluation import metrics
from fbjax.inference.pair_scorer import match_probability

NUM_BINS = 15
FEWEST = 10  # queries to fit on, and to measure on
FLATTEST = 1e-3  # smallest slope of the probability's logit, in units of the scores' spread
NUM_DRAWS, SEED = 200, 0


def calibration(positive: np.ndarray, negative: np.ndarray, fitted: np.ndarray) -> dict | None:
    """Errors of the scores as probabilities, before and after a temperature and a bias.

    `positive`, `negative` [Q]: scores of a match and of a pair that is none, for each query; `fitted` [Q] bool: the
    queries to fit on. {"temperature", "bias", "num_fitted", "num_queries": of the others, "raw", "calibrated": their
    `errors`}; None where one part has fewer than `FEWEST` queries.
    """
    if min(fitted.sum(), (~fitted).sum()) < FEWEST:
        return None
    temperature, bias = fit(positive[fitted], negative[fitted])
    held_out = positive[~fitted], negative[~fitted]
    sizes = {"num_fitted": int(fitted.sum()), "num_queries": len(held_out[0])}
    return {
        "temperature": temperature,
        "bias": bias,
        **sizes,
        "raw": errors(*map(match_probability, held_out)),
        "calibrated": errors(*(match_probability(scores, temperature, bias) for scores in held_out)),
    }


def fit(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """The temperature, above 0, and the bias that make the labels likeliest.

    Labels are smoothed by Platt's rule, as if there were one more pair of either kind: otherwise scores that tell all
    pairs apart would have the temperature 0.
    """
    scores = np.concatenate([positive, negative]).astype(float)
    labels = np.repeat([1 - 1 / (len(positive) + 2), 1 / (len(negative) + 2)], [len(positive), len(negative)])
    spread = float(scores.std()) or 1.0

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * scores / spread + parameters[1]
        wrong = (expit(logits) - labels) / len(scores)
        return float(np.mean(np.logaddexp(0, logits) - labels * logits)), np.array(
            [wrong @ scores / spread, wrong.sum()]
        )

    tightly = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(
        loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(FLATTEST, None), (None, None)], options=tightly
    )
    return float(spread / found.x[0]), float(found.x[1])


def errors(positive: np.ndarray, negative: np.ndarray) -> dict:
    """{"ece", "brier", and their intervals, "ece_if_exact", "bins"} of the probabilities of matches and of other pairs.

    Queries are resampled, each with both of its pairs. "bins": [mean probability, share of matches, pairs] of each.
    """
    figures = {}
    for name, error in (("ece", expected_error), ("brier", brier_score)):
        of_pairs = _of_pairs(error)
        figures[name] = of_pairs(positive, negative)
        figures[f"{name}.ci"] = list(metrics.interval(of_pairs, positive, negative))
    probabilities, labels = _joined(positive, negative)
    draws = np.random.default_rng(SEED).random((NUM_DRAWS, len(probabilities))) < probabilities
    figures["ece_if_exact"] = float(np.mean([expected_error(probabilities, drawn) for drawn in draws]))
    ordered = np.split(np.stack(_by_probability(probabilities, labels)), _starts(len(labels))[1:], axis=1)
    figures["bins"] = [[*map(float, part.mean(axis=1)), part.shape[1]] for part in ordered]
    return figures


def expected_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """``sum_b |share of matches - mean probability| n_b / N`` over `NUM_BINS` bins of as many pairs each.

    The expected calibration error. Pairs are sorted by probability; where a bin ends among equal ones, it holds their
    share of matches.
    """
    probabilities, shares = _by_probability(probabilities, labels)
    gaps = np.add.reduceat(shares - probabilities, _starts(len(shares)))
    return float(np.abs(gaps).sum() / len(shares))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean square of ``probability - label``; 1/4 for a probability of 1/2 throughout."""
    return float(np.mean((probabilities - labels) ** 2))


def print_calibration(figures: dict | None, say: Callable[[str], None]) -> None:
    if figures is None:
        metrics.print_row("calibration", f"not measured: it takes {FEWEST} queries to fit on and {FEWEST} others", say)
        return

    def spoken(kind: str) -> str:
        (low, high), error = figures[kind]["ece.ci"], figures[kind]
        return f"{error['ece']:.3f} [{low:.3f}, {high:.3f}], Brier {error['brier']:.3f}"

    cells = f"error {spoken('raw')}; at temperature {figures['temperature']:.2f} and bias {figures['bias']:+.2f} "
    metrics.print_row("calibration", cells + spoken("calibrated"), say)


def _by_probability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in ascending order, and the share of matches among the pairs of each one's probability."""
    distinct, places, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    shares = np.bincount(places, labels) / counts
    return np.repeat(distinct, counts), np.repeat(shares, counts)


def _starts(number: int) -> np.ndarray:
    """Where each bin of `number` sorted pairs begins."""
    bins = min(NUM_BINS, number)
    return np.arange(bins) * number // bins


def _of_pairs(error: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda positive, negative: error(*_joined(positive, negative))


def _joined(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of all pairs."""
    return np.concatenate([positive, negative]), np.repeat([1.0, 0.0], [len(positive), len(negative)])
