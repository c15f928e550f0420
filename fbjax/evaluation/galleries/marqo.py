"""Protocol ``marqo``: the benchmark of Marqo-FashionCLIP and -FashionSigLIP (Marqo 2024), over a whole catalogue.

Text queries, each with all its relevant products. In the task ``text-to-image`` the gallery holds the vectors of
images. In a task whose name ends with ``-to-product``, such as ``category-to-product``, it holds .9 image + .1 text, of
length 1. Of each query the first 10 products are kept. Recall@k is the number of relevant ones among the first k over
that of all, precision@k the same over k; their averages are those of k = 1 and k = 10. MRR@10 is 0 beyond 10. Ties
count against the model.

Queries are those of a file, with the field "task" beside those of protocol ``queries``. Without one they are drawn from
the catalogue as Marqo has drawn theirs: at most 2,000 of its distinct texts, and all its categories.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fbjax.evaluation import metrics
from fbjax.evaluation.galleries import queries
from fbjax.evaluation.galleries.queries import Asked, QueryFile

TEXT_TO_IMAGE, CATEGORY_TO_PRODUCT, TO_PRODUCT = queries.TASK, "category-to-product", "-to-product"
IMAGE_SHARE, TEXT_SHARE = 0.9, 0.1  # in the vector of a product
MOST_QUERIES, SEED = 2000, 0
DEPTHS = (1, 10)
DRAWN = f"drawn from the catalogue, seed {SEED}"


def tasks_of(file: QueryFile) -> dict[str, QueryFile]:
    """The queries of each task of a file, in the file's order. Raises ValueError for a task that there is not."""
    found = {}
    for task in dict.fromkeys(file.tasks):
        if task != TEXT_TO_IMAGE and not task.endswith(TO_PRODUCT):
            raise ValueError(
                f"{file.path} has a query of task {task!r}: name it {TEXT_TO_IMAGE!r}, or as {CATEGORY_TO_PRODUCT!r}"
            )
        here = [i for i, name in enumerate(file.tasks) if name == task]
        texts, relevant = (tuple(values[i] for i in here) for values in (file.texts, file.relevant))
        found[task] = dataclasses.replace(file, texts=texts, relevant=relevant, tasks=(task,) * len(here))
    return found


def drawn_tasks(
    ids: Sequence[str], texts: Sequence[str], categories: Sequence[str], num_queries: int | None
) -> dict[str, QueryFile]:
    """The queries that a catalogue gives: at most `num_queries` (default: 2,000) of its texts, and its categories.

    `texts`, `categories` [N]: of each product, "" for none.
    """
    by_text, by_category = _products_by(texts, ids), _products_by(categories, ids)
    order = np.random.default_rng(SEED).permutation(len(by_text))[: num_queries or MOST_QUERIES]
    kept = [list(by_text)[i] for i in np.sort(order)]
    found = {TEXT_TO_IMAGE: _file(TEXT_TO_IMAGE, {text: by_text[text] for text in kept})}
    if by_category:
        found[CATEGORY_TO_PRODUCT] = _file(CATEGORY_TO_PRODUCT, by_category)
    return found


def _products_by(values: Sequence[str], ids: Iterable[str]) -> dict[str, list[str]]:
    """{value: ids of the products that have it}, in the order of the catalogue, without the value ""."""
    found: dict[str, list[str]] = {}
    for value, identity in zip(values, ids, strict=True):
        if value:
            found.setdefault(value, []).append(str(identity))
    return found


def _file(task: str, relevant: dict[str, list[str]]) -> QueryFile:
    return QueryFile(DRAWN, tuple(relevant), tuple(map(tuple, relevant.values())), (task,) * len(relevant))


def product_vectors(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """``.9 image + .1 text`` at length 1, of ``images, texts [N, E]`` of length 1."""
    mixed = IMAGE_SHARE * images + TEXT_SHARE * texts
    return mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def task_figures(texts: np.ndarray, gallery: np.ndarray, asked: Asked) -> dict[str, float | list]:
    """Recall, precision and their averages, and MRR@10, with intervals, of ``texts [Q, E], gallery [N, E]``."""
    ranks = queries.ranks_of_relevant(texts, gallery, asked.rows)
    found = {k: np.array([(mine <= k).sum() for mine in ranks]) for k in DEPTHS}
    figures = {}
    for name, shares in (
        ("recall", {k: found[k] / asked.num_relevant for k in DEPTHS}),
        ("precision", {k: found[k] / k for k in DEPTHS}),
    ):
        for k, values in shares.items():
            figures |= metrics.mean_of(f"{name}@{k}", values)
        figures |= metrics.mean_of(f"average_{name}", np.mean(list(shares.values()), axis=0))
    return figures | metrics.mean_reciprocal(np.array([mine[0] for mine in ranks]), DEPTHS[-1])


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol: what Marqo publishes of each task."""
    say(f"marqo's benchmark over {figures['gallery']:,} products, queries {figures['queries']}")
    for task, found in figures["tasks"].items():
        name = "recall" if task == TEXT_TO_IMAGE else "precision"
        cells = "  ".join(f"{name.capitalize()}@{k} {metrics.with_interval(found, f'{name}@{k}')}" for k in DEPTHS)
        cells += f"  average {found[f'average_{name}']:.1%}  {metrics.spoken_mrr(found, DEPTHS[-1])}"
        say(f"{task}: {cells}  ({found['num_queries']:,} queries)")
        queries.print_skipped(found["skipped"], say)
