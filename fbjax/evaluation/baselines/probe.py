"""Linear probe: how much of a product's labels can be read off a run's frozen representation by a linear model.

A logistic regression on what the run makes of a product's text and image together, learned on products of the training
split and tested on the validation split; beside it the same on the text alone (TF-IDF, as `baseline.py` has it) and
the most frequent label. Nothing of the run is trained. FashionBERT's representation is what its alignment head reads,
the pooled [CLS] of the true pair (paper, section 3); of a run without alignment it is the towers' product vector.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fbjax.core.console import progress, say
from fbjax.data.batches.pipeline import read_strings, read_texts
from fbjax.data.records.builder import Records, build_records
from fbjax.data.records.source import Source
from fbjax.data.sources.tables import read_labels
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.evaluation import metrics
from fbjax.evaluation.baselines.features import text_features
from fbjax.inference.embedder import make_embedder
from fbjax.inference.pair_scorer import BUCKET, PairScorer
from fbjax.parallel.mesh import by_example, make_mesh, pad_rows, put_batch, replicated
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C: the inverse of the penalty on standardised features
HELD_OUT = 0.2  # share of the training products' groups on which C is chosen
MAX_ITERATIONS, TOLERANCE = 300, 1e-3  # at 1e-4: three times as long, the same within a point
SEED = 0


def probe(
    workdir: str | Path, *, labels: tuple[str, ...] = (), num_products: int = 8000, step: int | None = None
) -> dict:
    """What is read off a checkpoint (default: the best by validation AUC), ``{"labels": {column: ..}, ..}``.

    Of each column of the product tables (default: the category's): the numbers of `label_figures`. At most
    `num_products` of the training split are learned from, a seeded choice; all of the validation split is asked.
    """
    if num_products < 2:
        raise ValueError(f"--products {num_products}: take at least 2 to learn from")
    run = Run.open(workdir)
    columns = run.config.data.columns
    labels = tuple(dict.fromkeys(labels)) or (columns.category,)
    source = Source.from_config(run.config)
    cells = read_labels([file for files in source.files().values() for file in files], columns, labels)
    mesh = make_mesh(run.config.mesh)
    step, params = load_params(run, workdir, mesh, step)
    splits = build_records(source, run.vocabulary, run.config.data.prepared, progress)
    train, validation = splits["train"], splits["validation"]
    rows = np.sort(np.random.default_rng(SEED).permutation(len(train))[:num_products])
    sides = ((train, rows), (validation, np.arange(len(validation))))

    represent = pooled_pairs if "tia" in run.config.tasks.names else tower_vectors
    ours = [represent(run, mesh, run.frozen | params, *side) for side in sides]
    say(f"texts: TF-IDF and its {ours[0].shape[1]} leading directions")
    texts = text_features(*(read_strings(*side) for side in sides), ours[0].shape[1], SEED)
    figures = {
        "representation": "pooled [CLS]" if represent is pooled_pairs else "product vector",
        "size": ours[0].shape[1],
        "checkpoint_step": step,
        "train_products": len(rows),
        "validation_products": len(validation),
        "labels": {},
    }
    for place, column in enumerate(labels):
        named = [np.array([cells[str(i)][place] for i in records.ids[rows]]) for records, rows in sides]
        features = {"representation": ours, "text": texts}
        figures["labels"][column] = label_figures(features, named, train.groups[rows], column)
    return figures


def label_figures(features: dict, named: list[np.ndarray], groups: np.ndarray, column: str) -> dict:
    """``{"classes", "train", "validation", "without_label", "unseen", "majority", name of features: ..}``.

    `features`: name -> ([N, A], [M, A]) of training and validation products, `named` their labels [N], [M], "" where
    there is none: such products are left out and counted. Labels of the validation products that the training products
    lack ("unseen") count as told wrong. `groups` [N] keep together where C is chosen. Raises ValueError where there is
    nothing to tell apart.
    """
    there = [labels != "" for labels in named]
    train, validation = (labels[kept] for labels, kept in zip(named, there, strict=True))
    classes = np.unique(train)
    if len(classes) < 2 or not len(validation):
        raise ValueError(
            f"column {column!r} has {len(classes)} labels among {len(train):,} training products and "
            f"{len(validation):,} labelled validation products: there is nothing to tell apart"
        )
    unseen = ~np.isin(validation, classes)
    truth = np.unique(np.concatenate([train, validation]), return_inverse=True)[1].reshape(-1)
    learned, asked = truth[: len(train)], truth[len(train) :]
    figures = {
        "classes": len(classes),
        "train": len(train),
        "validation": len(validation),
        "without_label": {"train": int((~there[0]).sum()), "validation": int((~there[1]).sum())},
        "unseen": {"labels": len(np.unique(validation[unseen])), "products": int(unseen.sum())},
        "majority": classification(asked, np.full(len(asked), np.bincount(learned).argmax())),
    }
    for name, (own, other) in features.items():
        say(f"{column}: {len(classes)} labels from the {name}, {own.shape[1]} numbers of {len(learned):,} products")
        told, strength = fit(own[there[0]], learned, groups[there[0]], other[there[1]])
        figures[name] = {"C": strength} | classification(asked, told)
    return figures


def fit(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """What a logistic regression on ``features [N, A], labels [N]`` says of `other` [M, A], and its C.

    Of the strengths that of the highest accuracy on the held-out groups is taken, of equals the strongest penalty, and
    learned anew from all.
    """
    names = np.unique(groups)
    held_out = np.isin(groups, np.random.default_rng(SEED).permutation(names)[: int(len(names) * HELD_OUT)])
    best = STRENGTHS[len(STRENGTHS) // 2]  # too few groups or labels to choose by
    if held_out.any() and len(np.unique(labels[~held_out])) > 1:
        accuracies = [
            (
                _model(c).fit(features[~held_out], labels[~held_out]).predict(features[held_out]) == labels[held_out]
            ).mean()
            for c in progress(STRENGTHS, len(STRENGTHS), "strengths")
        ]
        best = STRENGTHS[int(np.argmax(accuracies))]
    return _model(best).fit(features, labels).predict(other), best


def _model(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE))


def classification(truth: np.ndarray, told: np.ndarray) -> dict:
    """Accuracy, balanced accuracy (mean recall of the true labels) and macro F1 with bootstrap intervals over products.

    ``truth, told [M]``: codes of labels. Macro F1 is over all labels that are true of a product or told of one. The
    intervals of the latter two resample within each true label; one of a single product adds nothing to their width.
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
    """How often each label is told rightly, is true, and is told."""
    size = max(truth.max(), told.max()) + 1
    return tuple(np.bincount(labels, minlength=size) for labels in (truth[truth == told], truth, told))


def tower_vectors(run: Run, mesh, variables: Any, records: Records, rows: np.ndarray) -> np.ndarray:
    """The towers' vectors of the products `rows`, [N, E]."""
    towers = make_embedder(run.config, run.model, run.feature_input, mesh)
    ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    read = lambda places: image_inputs(run, records, rows[places], towers.batch_size)  # noqa: E731
    return towers.embed_products(variables, ids, read, progress)


def pooled_pairs(run: Run, mesh, variables: Any, records: Records, rows: np.ndarray) -> np.ndarray:
    """FashionBERT's pooled [CLS] of each of the products `rows`, text and own image together: [N, D]."""
    model, patches = run.model, run.feature_input

    def pool(variables, ids, images):
        apply = partial(model.apply, {"params": variables["fashionbert"]})
        image = apply(patches.apply(variables["patches"], images), method="embed_image")
        cls = jnp.zeros((len(ids), 1), jnp.int32)
        hidden, _ = apply(apply(ids, method="embed_text"), ids != PAD_ID, image, cls, method="encode_pair")
        return apply(hidden[:, 0], method="pooled")

    size, across = PairScorer(model, patches, mesh).batch_size, by_example(mesh)
    pool = jax.jit(pool, in_shardings=(None, across, across), out_shardings=replicated(mesh))
    ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    lengths = (ids != PAD_ID).sum(axis=1)
    order = np.argsort(lengths, kind="stable")  # so that a batch computes hardly any padding
    starts = range(0, len(rows), size)
    inputs = image_inputs(run, records, rows[order], size)
    vectors = np.empty((len(rows), run.config.model.width), np.float32)
    for start, images in zip(progress(starts, len(starts), "products"), inputs, strict=True):
        members = order[start : start + size]
        length = min(-(-int(lengths[members[-1]]) // BUCKET) * BUCKET, ids.shape[1])
        batch = (pad_rows(ids[members, :length], size), pad_rows(images, size))
        vectors[members] = np.asarray(pool(variables, *put_batch(batch, mesh)))[: len(members)]
    return vectors


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """The figures of `probe` as a person reads them."""
    say(
        f"linear probe of checkpoint {figures['checkpoint_step']}, its {figures['representation']} of "
        f"{figures['size']} numbers: learned on {figures['train_products']:,} products, tested on "
        f"{figures['validation_products']:,}"
    )
    for column, rates in figures["labels"].items():
        say(f"{column}: {rates['classes']} labels")
        for name in ("representation", "text", "majority"):
            shown = []
            for figure in ("accuracy", "balanced_accuracy", "macro_f1"):
                low, high = rates[name][f"{figure}.ci"]
                shown.append(f"{figure.replace('_', ' ')} {rates[name][figure]:.1%} [{low:.1%}, {high:.1%}]")
            say(f"  {name:14} {'  '.join(shown)}")
        if rates["unseen"]["products"]:
            labels, products = rates["unseen"]["labels"], rates["unseen"]["products"]
            say(f"  NOTE: unseen in training and told wrong: {products:,} products ({labels:,} labels)")
        if sum(rates["without_label"].values()):
            without = rates["without_label"]
            say(f"  left out without a label: {without['train']:,} to learn, {without['validation']:,} to test")
