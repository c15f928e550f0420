"""Figures of predicted labels beside true ones, in NumPy."""

import numpy as np

from fbjax.evaluation import metrics


def classification(truth: np.ndarray, told: np.ndarray) -> dict:
    """Accuracy, balanced accuracy (mean recall of the true labels) and macro F1 with bootstrap intervals over products.

    ``truth, told [M]``: codes of true and predicted labels. Macro F1 is over all labels of either. The intervals of the
    last two resample within each true label, so a label of a single product adds nothing to their width.
    """
    figures = {}
    for name, statistic in (("accuracy", _accuracy), ("balanced_accuracy", _balanced), ("macro_f1", _macro_f1)):
        figures[name] = float(statistic(truth, told))
        strata = None if statistic is _accuracy else truth
        figures[f"{name}.ci"] = list(metrics.interval(statistic, truth, told, strata=strata))
    return figures


def _accuracy(truth: np.ndarray, told: np.ndarray) -> float:
    return (truth == told).mean()


def _balanced(truth: np.ndarray, told: np.ndarray) -> float:
    right, true, _ = _counts(truth, told)
    return (right[true > 0] / true[true > 0]).mean()


def _macro_f1(truth: np.ndarray, told: np.ndarray) -> float:
    right, true, said = _counts(truth, told)
    either = true + said
    return (2 * right[either > 0] / either[either > 0]).mean()


def _counts(truth: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per label the numbers of correct predictions, of true labels, and of predictions."""
    size = max(truth.max(), told.max()) + 1
    return tuple(np.bincount(labels, minlength=size) for labels in (truth[truth == told], truth, told))
