"""Protocol ``log``: the validation events of a log. A query, or a product, looks for the products that belong to it.

Each query is asked once, of all validation products; relevant are all that it led to. Queries and products have units:
a query is a text, or a product's text, image or both together; so is a product of the gallery. A product does not find
itself. A run that scores pairs ranks, for each query, one product and 20 of its category that are drawn. Rank@k is of
the best relevant one; MRR@10 is 0 beyond 10; mAP is the mean of precision at each relevant one. Ties count against the
model.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from fbjax.data.log.events import Events, query_key
from fbjax.evaluation import metrics
from fbjax.evaluation.galleries.gallery import cosines_in_parts

QUERY, PRODUCT, IMAGE, TEXT = "query", "product", "image", "text"
UNITS, LIST, NUM_OTHERS = (PRODUCT, IMAGE, TEXT), "list", 20
MRR_DEPTH = 10
Scores = Iterable[tuple[slice, np.ndarray]]  # (part of the queries, its scores [q, N])


@dataclasses.dataclass(frozen=True)
class Asked:
    """Q queries of a log, in the order of their first events; each is a text, or a product."""

    texts: list[str]  # [Q], [] where products ask
    own: np.ndarray | None  # [Q]: rows of the products that ask; None where texts do
    relevant: list[np.ndarray]  # [Q]: rows of the products that belong to each

    def __len__(self) -> int:
        return len(self.relevant)

    @property
    def digest(self) -> str:
        """A hash of all of them."""
        own = None if self.own is None else self.own.tolist()
        content = (self.texts, own, [rows.tolist() for rows in self.relevant])
        return hashlib.sha256(repr(content).encode()).hexdigest()


def ask(events: Events, num_queries: int | None = None) -> Asked:
    """The queries of `events` that match, the first `num_queries` of a seeded shuffle. Raises ValueError on none."""
    events = events.matching()
    if not len(events):
        raise ValueError("the log has no validation event of a match (see what was skipped): there is nothing to ask")
    keys = events.rows.tolist() if events.queries is None else list(map(query_key, events.queries))
    targets = events.rows if events.others is None else events.others
    found: dict = {}
    for place, (key, target) in enumerate(zip(keys, targets.tolist(), strict=True)):
        found.setdefault(key, (place, {}))[1][target] = None
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[:num_queries])
    each = list(found.values())
    places = np.array([each[i][0] for i in chosen])
    relevant = [np.array(list(each[i][1])) for i in chosen]
    texts = [] if events.queries is None else events.queries[places].tolist()
    return Asked(texts, None if texts else events.rows[places], relevant)


def draw_lists(
    asked: Asked, categories: np.ndarray, groups: np.ndarray, num_others: int = NUM_OTHERS, seed: int = 0
) -> np.ndarray:
    """Rows [Q, 1 + n] of the first product of each query, and of n others of its category, drawn; -1: there are fewer.

    Others are neither relevant nor of a relevant product's group. ``categories, groups [N]``.
    """
    rng, lists = np.random.default_rng(seed), np.full((len(asked), 1 + num_others), -1)
    members = {category: np.flatnonzero(categories == category) for category in np.unique(categories)}
    for mine, relevant in zip(lists, asked.relevant, strict=True):
        others = members[categories[relevant[0]]]
        others = others[~np.isin(groups[others], groups[relevant])]
        mine[0], chosen = relevant[0], rng.permutation(others)[:num_others]
        mine[1 : 1 + len(chosen)] = chosen
    return lists


def list_figures(asked: Asked, scores: np.ndarray) -> tuple[dict, dict]:
    """Figures and ranks in the form of `figures_in`, of scores [Q, 1 + n] of `draw_lists`; also the AUC.

    The unit of the gallery is then "list".
    """
    own, others = scores[:, 0], scores[:, 1:]
    ranks = metrics.rank_of_positive(own, others)
    first = others[:, 0] > -np.inf
    figures = metrics.hit_rates(ranks) | metrics.mean_reciprocal(ranks, MRR_DEPTH)
    figures |= metrics.matching(own[first], others[first, 0], scores_matches=False)
    about = {"num_queries": len(asked), "gallery": scores.shape[1], "sha256": asked.digest}
    return about | {"units": {QUERY: {LIST: figures}}}, {QUERY: {LIST: ranks.tolist()}}


def log_figures(asked: Asked, queries: dict[str, np.ndarray], gallery: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """`figures_in` of the cosines of vectors [Q, E] and [N, E], each by its unit."""
    scores = {
        mine: {theirs: cosines_in_parts(vectors, products) for theirs, products in gallery.items()}
        for mine, vectors in queries.items()
    }
    return figures_in(asked, scores, len(next(iter(gallery.values()))))


def figures_in(asked: Asked, scores: dict[str, dict[str, Scores]], num_products: int) -> tuple[dict, dict]:
    """Figures of ``{unit of the query: {unit of the gallery: parts of the scores}}``, and the ranks in the same form.

    Where products ask, "gains" says by how much whole products, within their unit, are ahead of each side alone.
    """
    figures: dict = {"num_queries": len(asked), "gallery": num_products, "sha256": asked.digest}
    figures["units"], ranks = {mine: {} for mine in scores}, {mine: {} for mine in scores}
    for mine, by_gallery in scores.items():
        for theirs, parts in by_gallery.items():
            found = ranks_of(parts, asked)
            figures["units"][mine][theirs] = figures_of(found)
            ranks[mine][theirs] = [int(rank[0]) for rank in found]
    if asked.own is not None:
        within = {unit: np.array(ranks[unit][unit]) for unit in UNITS}
        figures["gains"] = {unit: metrics.gains(within[PRODUCT], within[unit]) for unit in UNITS[1:]}
    return figures, ranks


def ranks_of(parts: Scores, asked: Asked) -> list[np.ndarray]:
    """The ranks of each query's relevant products, ascending, from parts of the scores [Q, N]."""
    ranks = []
    for part, scores in parts:
        for place, mine in zip(range(part.start, part.start + len(scores)), scores, strict=True):
            relevant = asked.relevant[place]
            own = np.sort(mine[relevant])[::-1]
            mine[relevant] = -np.inf
            if asked.own is not None:
                mine[asked.own[place]] = -np.inf
            ranks.append(1 + np.arange(len(own)) + (mine >= own[:, None]).sum(axis=1))
    return ranks


def figures_of(ranks: list[np.ndarray]) -> dict:
    """Rank@1/5/10, MRR@10 and mAP with their intervals, of each query's ranks."""
    best = np.array([mine[0] for mine in ranks])
    precision = np.array([np.mean(np.arange(1, 1 + len(mine)) / mine) for mine in ranks])
    return metrics.hit_rates(best) | metrics.mean_reciprocal(best, MRR_DEPTH) | metrics.mean_of("map", precision)


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol."""
    metrics.print_row("log", f"{figures['num_queries']:,} queries, {figures['gallery']:,} products", say)
    for mine, by_gallery in figures["units"].items():
        for theirs, found in by_gallery.items():
            name, shown = ("AUC", "auc") if theirs == LIST else ("mAP", "map")
            low, high = found[f"{shown}.ci"]
            mean = f"{name} {found[shown]:.3f} [{low:.3f}, {high:.3f}]"
            cells = f"{metrics.spoken(found)}  {metrics.spoken_mrr(found, MRR_DEPTH)}  {mean}"
            metrics.print_row(f"{mine} > {theirs}", cells, say)
    for unit, gains in figures.get("gains", {}).items():
        low, high = (f"{100 * bound:+.1f}" for bound in gains["gain@1.ci"])
        said = f"text and image together: Rank@1 {100 * gains['gain@1']:+.1f} [{low}, {high}] points"
        metrics.print_row(f"over {unit}", said, say)
