"""Protocol ``attributes``: how well a run predicts the columns of the product table that it was trained on.

Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110) reports accuracy and macro-F1 of category and sub-category. Values
that are no class of the run, as training had none or too few of them, count as wrong.
"""

import collections
from collections.abc import Callable

import numpy as np

from fbjax.data.batches.classes import NO_CLASS, Classes, Column
from fbjax.evaluation import metrics
from fbjax.evaluation.recognition.classification import classification

KINDS = ("accuracy", "balanced_accuracy", "macro_f1")
CONFUSIONS = 10  # the most frequent of each column


def attribute_figures(classes: Classes, cells: np.ndarray, probabilities: list[np.ndarray]) -> dict:
    """{column: its figures}, for products with ``cells [N, A]`` str and a probability of each class, [N, K] a column.

    Products with an empty cell are left out. Raises ValueError where all of a column are empty.
    """
    codes, found = classes.codes(cells), {}
    for place, column in enumerate(classes.columns):
        there = cells[:, place] != ""
        if not there.any():
            raise ValueError(f"none of the {len(cells):,} products has a value in column {column.name!r}")
        told = probabilities[place].argmax(axis=1)
        found[column.name] = _column_figures(column, cells[there, place], codes[there, place], told[there])
        found[column.name]["without"] = int((~there).sum())
    return found


def predictions_of(classes: Classes, ids: np.ndarray, cells: np.ndarray, probabilities: list[np.ndarray]) -> dict:
    """{column: [[id, true value, predicted value, its probability], ..]} of the products that have the attribute."""
    found = {}
    for column, values, chances in zip(classes.columns, cells.T, probabilities, strict=True):
        told = chances.argmax(axis=1)
        rows = zip(ids.tolist(), values.tolist(), told.tolist(), chances.max(axis=1).tolist(), strict=True)
        found[column.name] = [[i, true, column.values[code], chance] for i, true, code, chance in rows if true]
    return found


def _column_figures(column: Column, values: np.ndarray, codes: np.ndarray, told: np.ndarray) -> dict:
    """Of products that have the attribute: `values` [M] str, their classes `codes` [M], and those predicted, `told`."""
    unknown = codes == NO_CLASS
    truth = codes.copy()
    truth[unknown] = len(column.values) + np.unique(values[unknown], return_inverse=True)[1]  # labels of their own
    rare = np.isin(values, list(column.rare))
    figures = {"classes": len(column.values), "products": len(values)}
    for name, here in (("rare", unknown & rare), ("unseen", unknown & ~rare)):
        figures[name] = {"values": len(np.unique(values[here])), "products": int(here.sum())}
    pairs = collections.Counter(zip(values.tolist(), told.tolist(), strict=True))
    totals = collections.Counter(values.tolist())
    wrong = [(true, column.values[code], n) for (true, code), n in pairs.items() if true != column.values[code]]
    worst = sorted(wrong, key=lambda pair: (-pair[2], *pair[:2]))[:CONFUSIONS]
    figures["confusions"] = [[true, predicted, n, totals[true]] for true, predicted, n in worst]
    figures["majority"] = {"value": column.values[0]} | classification(truth, np.zeros_like(truth))
    return figures | classification(truth, told)


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol."""
    for name, of in figures["columns"].items():
        shown = "  ".join(f"{kind.replace('_', ' ')} {metrics.with_interval(of, kind)}" for kind in KINDS)
        metrics.print_row(name, f"{shown}  ({of['products']:,} products, {of['classes']} classes)", say)
        majority = of["majority"]
        always = (
            f"  always {majority['value']!r}: accuracy {majority['accuracy']:.1%}, macro f1 {majority['macro_f1']:.1%}"
        )
        say(always + (f"; left out, as they lack it: {of['without']:,} products" if of["without"] else ""))
        for kind, why in (("unseen", "unseen in training"), ("rare", "too rare in training to be a class")):
            if of[kind]["products"]:
                products, values = of[kind]["products"], of[kind]["values"]
                say(f"  NOTE: {why}, and told wrong: {products:,} products ({values:,} values)")
    say(f"attributes are predicted from {SOURCES[figures['reads']]}")


SOURCES = {
    "pair": "text and picture together; a text that names a value gives the answer away",
    "text": "the text alone; a text that names a value gives the answer away",
    "image": "the picture alone",
}
