"""Retrieval from a whole split: ranks every product's text and image vectors by cosine, and re-ranks them.

A query's own product gets two ranks: "apart" without the other members of its group (duplicates and variants, which are
never negatives), and "strict", where they count as wrong. If a group has several photos of one text, there is a third
rank, by product: any photo of the text's product is a hit, and the gallery has each text once. Re-ranking changes only
the rank "apart". Ties count against the model.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS

COSINES_AT_ONCE = 2**24
SEED = 0


@dataclasses.dataclass(frozen=True)
class Search:
    """The results of Q queries: the ranks of their own products, and the K nearest products of each."""

    own: np.ndarray  # [Q]: row of the query's own product
    apart: np.ndarray  # [Q]: its rank without the rest of its group
    strict: np.ndarray  # [Q]: its rank among all
    nearest: np.ndarray  # [Q, K]: rows of the gallery without the rest of its group, unordered
    cosines: np.ndarray  # [Q, K]; -inf if the gallery is smaller


def choose_queries(num_products: int, num_queries: int | None) -> np.ndarray:
    """Rows of the queries: all, or the first `num_queries` of a seeded shuffle."""
    return np.sort(np.random.default_rng(SEED).permutation(num_products)[:num_queries])


def cosines_in_parts(
    queries: np.ndarray, gallery: np.ndarray, penalties: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """(part of the queries, its scores [q, N]): cosines of ``queries [Q, E], gallery [N, E]`` less `penalties` [N].

    The caller may change the scores. Raises ValueError where a score is not finite.
    """
    at_once = max(1, COSINES_AT_ONCE // max(1, len(gallery)))
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        scores = queries[part] @ gallery.T
        metrics.check_finite(scores)
        yield part, scores if penalties is None else scores - penalties


def search(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray, groups: np.ndarray, size: int) -> Search:
    """``queries [Q, E], gallery [N, E], own [Q], groups [N]``: ranks, and the `size` nearest of each query."""
    size, at_once = min(size, len(gallery)), max(1, COSINES_AT_ONCE // len(gallery))
    parts = []
    for start in range(0, len(own), at_once):
        rows = own[start : start + at_once]
        cosines = queries[start : start + at_once] @ gallery.T
        metrics.check_finite(cosines)
        other = np.arange(len(gallery)) != rows[:, None]
        siblings = (groups == groups[rows, None]) & other
        before = (cosines >= np.take_along_axis(cosines, rows[:, None], axis=1)) & other
        apart = np.where(siblings, -np.inf, cosines)
        nearest = np.argpartition(-apart, size - 1, axis=1)[:, :size] if size else np.empty((len(rows), 0), int)
        ranks = 1 + (before & ~siblings).sum(axis=1), 1 + before.sum(axis=1)
        parts.append((rows, *ranks, nearest, np.take_along_axis(apart, nearest, axis=1)))
    return Search(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclasses.dataclass(frozen=True)
class Products:
    """The products of photos: rows of a group with the same text are photos of one product."""

    of_row: np.ndarray  # [N]: the product of each row
    groups: np.ndarray  # [S]: the group of each product
    rows: np.ndarray  # [S]: a row of each product, for its text

    @classmethod
    def of(cls, groups: np.ndarray, text_codes: np.ndarray) -> "Products":
        """``groups, text_codes [N]``: rows with the same code have the same text."""
        keys, rows, of_row = np.unique(np.stack([groups, text_codes]), axis=1, return_index=True, return_inverse=True)
        return cls(of_row.reshape(-1), keys[0], rows)


def product_ranks(
    queries: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, of_gallery: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Ranks [Q] of the best of each query's own: 1 + how many of other groups in the gallery score at least as high.

    ``queries [Q, E], gallery [G, E]``; `wanted` [Q] and `of_gallery` [G] are products, and `groups` [S] their groups.
    """
    at_once, parts = max(1, COSINES_AT_ONCE // len(gallery)), []
    for start in range(0, len(queries), at_once):
        products = wanted[start : start + at_once, None]
        cosines = queries[start : start + at_once] @ gallery.T
        metrics.check_finite(cosines)
        best = np.where(of_gallery == products, cosines, -np.inf).max(axis=1, keepdims=True)
        parts.append(1 + ((cosines >= best) & (groups[of_gallery] != groups[products])).sum(axis=1))
    return np.concatenate(parts)


def reranked(found: Search, scores: np.ndarray) -> np.ndarray:
    """Ranks [Q], apart, after sorting the nearest by their `scores` [Q, K], highest first.

    If the own product may be outside the K nearest, its rank stays the same.
    """
    own = found.nearest == found.own[:, None]
    best = np.where(own, scores, -np.inf).max(axis=1, initial=-np.inf)
    before = (scores >= best[:, None]) & ~own & np.isfinite(found.cosines)
    return np.where(within(found), 1 + before.sum(axis=1), found.apart)


def within(found: Search) -> np.ndarray:
    """Queries [Q] whose own product is certainly among the nearest: only these can get another rank."""
    return found.apart <= found.nearest.shape[1]


def full_figures(
    texts: np.ndarray,
    images: np.ndarray,
    groups: np.ndarray,
    num_queries: int | None = None,
    *,
    text_codes: np.ndarray | None = None,
    size: int = 0,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
    scale: float = 1.0,
) -> tuple[dict, dict]:
    """Rank@1/5/10 of ``texts, images [N, E]`` in both directions; with a `score` also re-ranked. And each query's
    ranks, ``{direction: {"apart": [Q], "strict": [Q]}}`` as lists, of the cosines.

    Equal `text_codes` [N] mean equal texts. If products have several photos by them, "rank@k.product" are the hit rates
    by product, over the first `num_queries` of a shuffle of the distinct texts and of the photos. `score` maps pairs
    [M, 2] of rows (text, image), the `size` nearest of each query, to log-odds [M]. "reranked" sorts them by ``score +
    scale * cosine``, "reranked_alone" by the score. "gain@k" is the hit rate minus that of the cosines.
    """
    rows = choose_queries(len(texts), num_queries)
    size = min(size, len(texts)) if score else 0
    towers = {"image_to_text": (images, texts), "text_to_image": (texts, images)}
    found = {d: search(queries[rows], gallery, rows, groups, size) for d, (queries, gallery) in towers.items()}
    figures = {"gallery": len(texts), "num_queries": len(rows), "rerank": size}
    figures |= {d: metrics.hit_rates(x.apart) | metrics.hit_rates(x.strict, ".strict") for d, x in found.items()}
    products = Products.of(groups, np.arange(len(texts)) if text_codes is None else text_codes)
    if len(products.rows) < len(texts):  # some have several photos
        figures |= {"products": len(products.rows), "photos": len(texts)}
        for direction, ranks in _ranks_by_product(texts, images, products, rows, num_queries).items():
            figures[direction] |= metrics.hit_rates(ranks, ".product")
    if size:
        scores = _score_nearest(found, score)
        combined = {d: scores[d] + scale * x.cosines for d, x in found.items()}
        for name, given in (("reranked", combined), ("reranked_alone", scores)):
            ranks = {d: reranked(x, given[d]) for d, x in found.items()}
            figures[name] = {d: metrics.hit_rates(r) | metrics.gains(r, found[d].apart) for d, r in ranks.items()}
    return figures, {d: {"apart": x.apart.tolist(), "strict": x.strict.tolist()} for d, x in found.items()}


def _ranks_by_product(texts, images, products: Products, rows: np.ndarray, num_queries: int | None) -> dict:
    """Ranks of the photos `rows` among the distinct texts, and of distinct texts among all photos."""
    each, asked = np.arange(len(products.rows)), choose_queries(len(products.rows), num_queries)
    named, of_row, groups = texts[products.rows], products.of_row, products.groups
    return {
        "image_to_text": product_ranks(images[rows], named, of_row[rows], each, groups),
        "text_to_image": product_ranks(named[asked], images, asked, of_row, groups),
    }


def _score_nearest(found: dict[str, Search], score: Callable) -> dict[str, np.ndarray]:
    """Scores [Q, K] of each direction's nearest, every distinct pair scored once; 0 if the order does not matter."""
    pairs = {}
    for direction, x in found.items():
        inside = within(x)
        queries = np.broadcast_to(x.own[inside, None], x.nearest[inside].shape)
        text_first = direction == "text_to_image"
        pairs[direction] = np.stack([queries, x.nearest[inside]][:: 1 if text_first else -1], axis=-1).reshape(-1, 2)
    distinct, places = np.unique(np.concatenate(list(pairs.values())), axis=0, return_inverse=True)
    values = score(distinct)[places.reshape(-1)] if len(distinct) else np.empty(0)
    metrics.check_finite(values)
    scores = {direction: np.zeros(x.nearest.shape) for direction, x in found.items()}
    parts = np.split(values, np.cumsum([len(some) for some in pairs.values()])[:-1])
    for (direction, x), part in zip(found.items(), parts, strict=True):
        scores[direction][within(x)] = part.reshape(-1, x.nearest.shape[1])
    return scores


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of `full_figures`."""
    size = f"{figures['gallery']:,} products, {figures['num_queries']:,} queries a direction"
    metrics.print_row("full gallery", f"{size}; strict: others of the query's group count as wrong", say)
    tables = {"": figures}
    if "reranked" in figures:
        tables[f"with scores of the top {figures['rerank']}"] = figures["reranked"]
        tables["by these scores alone"] = figures["reranked_alone"]
    for direction in DIRECTIONS:
        for name, table in tables.items():
            rates = table[direction]
            if "gain@1" in rates:
                low, high = (f"{100 * bound:+.1f}" for bound in rates["gain@1.ci"])
                about = f"{name}: Rank@1 {100 * rates['gain@1']:+.1f} [{low}, {high}] points"
            else:
                about = f"strict Rank@1 {rates['rank@1.strict']:.1%}"
            metrics.print_row(direction, f"{metrics.spoken(rates)}  ({about})", say)
            if "rank@1.product" in rates:
                counted = f"by product: {figures['products']:,} with {figures['photos']:,} photos"
                metrics.print_row(direction, f"{metrics.spoken(rates, '.product')}  ({counted})", say)
