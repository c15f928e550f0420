"""Protocol ``mixed``: new products among trained ones, as in a shop's index.

A run that is trained on one half of the groups (config.train.half) answers text queries of validation products over
three galleries: validation pictures "alone", with "trained" pictures of its half beside them, and with as many "unseen"
ones of the other half. Trained pictures know the words of their own texts, and attract queries: the ratio of Rank@1
among trained to Rank@1 among unseen pictures is 1 where that does no harm. Others of a query's group are left out, as
in `fbjax.evaluation.galleries.gallery`; a group never crosses a split.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fbjax.data.batches.halves import HALVES, rows_of_half
from fbjax.evaluation import metrics
from fbjax.evaluation.galleries.gallery import cosines_in_parts
from fbjax.evaluation.galleries.queries import print_skipped

GALLERIES = ("alone", "trained", "unseen")
MRR_DEPTH = 10
SEED = 0  # of the choice that makes both halves equally large


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What stands in the galleries, each [.., E] or [..]."""

    validation: np.ndarray  # [N, E]
    trained: np.ndarray  # [M, E]: of the half that the run was trained on
    unseen: np.ndarray  # [M, E]: of the other half

    @property
    def sizes(self) -> dict[str, int]:
        """The number of pictures in each gallery."""
        here = len(self.validation)
        return {"alone": here, "trained": here + len(self.trained), "unseen": here + len(self.unseen)}

    def joined(self) -> np.ndarray:
        return np.concatenate([self.validation, self.trained, self.unseen])


def choose_rows(groups: np.ndarray, half: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training split in the trained `half` and in the other one, equally many; ``groups [N]``."""
    other = HALVES[half == HALVES[0]]
    rows = [rows_of_half(groups, name) for name in (half, other)]
    size, rng = min(map(len, rows)), np.random.default_rng(SEED)
    trained, unseen = (np.sort(rng.permutation(some)[:size]) for some in rows)
    return trained, unseen


def mixed_figures(
    queries: np.ndarray,
    pictures: Pictures,
    rows: list[np.ndarray],
    groups: np.ndarray,
    penalties: np.ndarray | None = None,
) -> dict:
    """Rank@1/5/10 and MRR@10 over each gallery, and the cold-start ratio with an interval paired by query.

    ``queries [Q, E]``; `rows`: the relevant validation rows of each; `groups` [N] of the validation split; `penalties`
    [N + 2 M] of all pictures in their order.
    """
    ranks = ranks_by_gallery(queries, pictures, rows, groups, penalties)
    figures = {name: metrics.hit_rates(mine) | metrics.mean_reciprocal(mine, MRR_DEPTH) for name, mine in ranks.items()}
    hits = (ranks[name] <= 1 for name in ("trained", "unseen"))
    return figures | metrics.ratio_of("cold_start_ratio", *hits)


def ranks_by_gallery(
    queries: np.ndarray,
    pictures: Pictures,
    rows: list[np.ndarray],
    groups: np.ndarray,
    penalties: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Ranks [Q] of the best of each query's relevant `rows` in each gallery, without the rest of their groups."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = dict(zip(groups[order][starts].tolist(), np.split(order, starts[1:]), strict=True))
    bounds = np.cumsum([0, len(pictures.validation), len(pictures.trained)])
    before = []
    for part, scores in cosines_in_parts(queries, pictures.joined(), penalties):
        for mine, relevant in zip(scores, rows[part], strict=True):
            best = mine[relevant].max()
            for group in set(groups[relevant].tolist()):
                mine[members[group]] = -np.inf
            before.append(np.add.reduceat(mine >= best, bounds, dtype=np.int64))
    alone, trained, unseen = np.array(before).T
    return {"alone": 1 + alone, "trained": 1 + alone + trained, "unseen": 1 + alone + unseen}


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol."""
    size = f"{figures['num_queries']:,} text queries of validation products"
    metrics.print_row("mixed", f"{size}; ratio: Rank@1 among trained over Rank@1 among unseen pictures", say)
    tables = {"": figures} | ({"hubs corrected: ": figures["corrected"]} if "corrected" in figures else {})
    for name, table in tables.items():
        for gallery in GALLERIES:
            rates = f"{metrics.spoken(table[gallery])}  {metrics.spoken_mrr(table[gallery], MRR_DEPTH)}"
            metrics.print_row(gallery, f"{name}{rates}  ({figures['gallery'][gallery]:,} pictures)", say)
        metrics.print_row("ratio", f"{name}{_spoken_ratio(table)}", say)
    print_skipped(figures["skipped"], say)


def _spoken_ratio(table: dict) -> str:
    if table["cold_start_ratio"] is None:
        return "unknown, as no query has its product first among unseen pictures"
    low, high = table["cold_start_ratio.ci"]
    bounds = "too few hits for an interval" if low is None else f"[{low:.2f}, {high:.2f}]"
    return f"{table['cold_start_ratio']:.2f} {bounds}"
