"""Linear probe: predicts a product's labels from a run's frozen representation by logistic regression.

The representation is of text and image together. Baselines are the same model on the text alone (TF-IDF) and the most
frequent label. Training products are for fitting, validation products for the test. FashionBERT's representation is
the input of its alignment head, the pooled [CLS] of the true pair (paper, section 3). A run without alignment uses the
towers' product vector.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fbjax.core.batching import mixed_batches
from fbjax.core.console import progress, say
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import open_source
from fbjax.data.sources.tables import read_labels
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.evaluation import metrics
from fbjax.evaluation.baselines.features import text_features
from fbjax.evaluation.recognition.classification import classification
from fbjax.inference.catalogue.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.inference.pair_scorer import BUCKET, PairScorer
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C: the inverse of the penalty on standardised features
HELD_OUT = 0.2  # share of the training products' groups on which C is chosen
MAX_ITERATIONS, TOLERANCE = 300, 1e-3  # at 1e-4: three times as long, the same within a point
SEED = 0


def probe(
    workdir: str | Path, *, labels: tuple[str, ...] = (), num_products: int = 8000, step: int | None = None
) -> dict:
    """The probe of a checkpoint (default: the best on the validation sample), ``{"labels": {column: ..}, ..}``.

    For each column of the product tables (default: the category's): `label_figures`. Fits on a seeded choice of at most
    `num_products` training products, tests on all validation products.
    """
    if num_products < 2:
        raise ValueError(f"--products {num_products}: take at least 2 to learn from")
    loaded = LoadedRun.load(workdir, step)
    run = loaded.run
    columns = run.config.data.columns
    labels = tuple(dict.fromkeys(labels)) or (columns.category,)
    source = open_source(run.config.data, run.config.patches.image_size)
    cells = read_labels([file for files in source.files().values() for file in files], run.config.data, labels)
    splits = run.splits()
    train, validation = splits["train"], splits["validation"]
    rows = np.sort(np.random.default_rng(SEED).permutation(len(train))[:num_products])
    sides = ((train, rows), (validation, np.arange(len(validation))))

    represent = pooled_pairs if run.scores_pairs else product_vectors
    ours = [represent(loaded, *side) for side in sides]
    say(f"texts: TF-IDF and its {ours[0].shape[1]} leading directions")
    texts = text_features(*(split.strings(rows) for split, rows in sides), ours[0].shape[1], SEED)
    figures = {
        "representation": "pooled [CLS]" if represent is pooled_pairs else "product vector",
        "size": ours[0].shape[1],
        "checkpoint_step": loaded.step,
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

    `features`: name -> ([N, A], [M, A]) of training and validation products; `named`: their labels [N], [M]. Products
    with the label "" are left out. Labels that only validation products have ("unseen") count as wrong. The choice of C
    does not split `groups` [N]. Raises ValueError if there are fewer than two labels.
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
    """Predictions for `other` [M, A] of a logistic regression on ``features [N, A], labels [N]``, and its C.

    C has the highest accuracy on held-out groups; of equal ones it is the smallest. The last fit uses all products.
    """
    names = np.unique(groups)
    held_out = np.isin(groups, np.random.default_rng(SEED).permutation(names)[: int(len(names) * HELD_OUT)])
    best = STRENGTHS[len(STRENGTHS) // 2]  # for too few groups or labels

    def fitted(c, rows):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE))
        return model.fit(features[rows], labels[rows])

    if held_out.any() and len(np.unique(labels[~held_out])) > 1:
        strengths = progress(STRENGTHS, len(STRENGTHS), "strengths")
        right = [(fitted(c, ~held_out).predict(features[held_out]) == labels[held_out]).mean() for c in strengths]
        best = STRENGTHS[int(np.argmax(right))]
    return fitted(best, slice(None)).predict(other), best


def product_vectors(loaded: LoadedRun, records: Split, rows: np.ndarray) -> np.ndarray:
    """The towers' vectors of the products `rows`, [N, E]."""
    return embed_records(loaded, make_embedder(loaded.run, loaded.mesh), records, "product", rows)


def pooled_pairs(loaded: LoadedRun, records: Split, rows: np.ndarray) -> np.ndarray:
    """FashionBERT's pooled [CLS] of each of the products `rows`, text and own image together: [N, D]."""
    run, mesh, variables = loaded.run, loaded.mesh, loaded.variables
    model, patches = run.model, run.feature_input
    scores = next(task.name for task in model.tasks if task.scores_pairs)

    def pool(variables, ids, images):
        apply = partial(model.apply, {"params": variables["fashionbert"]})
        image = apply(patches.apply(variables["patches"], images), method="embed_image")
        cls = jnp.zeros((len(ids), 1), jnp.int32)
        hidden, _ = apply(apply(ids, method="embed_text"), ids != PAD_ID, image, cls, method="encode_pair")
        return apply(scores, "pooled", hidden[:, 0], method="run_head")

    size, across = PairScorer(model, patches, mesh).batch_size, by_example(mesh)
    pool = jax.jit(pool, in_shardings=(None, across, across), out_shardings=replicated(mesh))
    ids = text_inputs(run, records, rows)
    batches = mixed_batches((ids != PAD_ID).sum(axis=1), size, BUCKET, ids.shape[1])
    inputs = image_inputs(run, records, rows[np.concatenate([members for _, members in batches])], size)
    vectors = np.empty((len(rows), run.config.model.width), np.float32)
    for (length, members), images in zip(progress(batches, len(batches), "products"), inputs, strict=True):
        batch = (pad_rows(ids[members, :length], size), pad_rows(images, size))
        vectors[members] = np.asarray(pool(variables, *put_batch(batch, mesh)))[: len(members)]
    return vectors


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of `probe`."""
    head = "linear probe of checkpoint {checkpoint_step}, its {representation} of {size} numbers: learned on "
    say((head + "{train_products:,} products, tested on {validation_products:,}").format(**figures))
    for column, rates in figures["labels"].items():
        say(f"{column}: {rates['classes']} labels")
        for name in ("representation", "text", "majority"):
            kinds = ("accuracy", "balanced_accuracy", "macro_f1")
            shown = (f"{kind.replace('_', ' ')} {metrics.with_interval(rates[name], kind)}" for kind in kinds)
            say(f"  {name:14} {'  '.join(shown)}")
        if rates["unseen"]["products"]:
            labels, products = rates["unseen"]["labels"], rates["unseen"]["products"]
            say(f"  NOTE: unseen in training and told wrong: {products:,} products ({labels:,} labels)")
        if sum(rates["without_label"].values()):
            without = rates["without_label"]
            say(f"  left out without a label: {without['train']:,} to learn, {without['validation']:,} to test")
