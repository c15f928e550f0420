"""The protocols of an evaluation (paper, section 4), over any function that scores pairs of a text and an image.

* ``candidates``: Rank@1/5/10 of the positive among each list's candidates, in both directions.
* ``matching``: each list's positive against its first other candidate (same sub-category), AUC; the AUC against a
  product of any category; and where a score above 0 says "match", balanced accuracy and the share of right decisions
  over whole lists, 1 to 100.
* ``full``: retrieval from a whole split, see `fbjax.gallery`.

It knows neither models nor checkpoints: `score` takes pairs [N, 2] of rows of the records, (text, image), to [N].
"""

from collections.abc import Callable

import numpy as np

from fbjax import gallery, metrics
from fbjax.candidates import DIRECTIONS, CandidateList, any_category_negatives, draw_lists, read_lists
from fbjax.data.catalogue import Records

Score = Callable[[np.ndarray], np.ndarray]
Lists = tuple[list[CandidateList], str]  # and their SHA-256
OVER_LISTS = ("candidates", "matching")
PROTOCOLS = (*OVER_LISTS, "full")
NUM_OTHERS, DRAWN_QUERIES = 100, 1000  # of lists drawn here, as in the paper
TOP = 5


def read_request(protocols: tuple[str, ...], candidates: str | None, num_queries: int | None) -> Lists | None:
    """The lists of the file `candidates`, where there is one; ValueError before the work where a request is wrong."""
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"unknown protocol {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(PROTOCOLS)}")
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"--queries {num_queries}: take at least 1")
    return read_lists(candidates, num_queries) if candidates else None


def list_figures(
    records: Records,
    protocols: tuple[str, ...],
    lists: Lists | None,
    num_queries: int | None,
    score: Score,
    decides: bool,
) -> tuple[dict, list[dict]]:
    """The figures of ``candidates`` and ``matching``, and each query's ranking; ({}, []) where neither is asked for.

    `lists` None: drawn from the records, seed 0. `decides`: whether a score above 0 says "match". A ranking is
    {"direction", "query", "positive", "candidates": how many, "rank" and "score" of the positive, "top": the first
    [id, score]s}.
    """
    if not set(protocols) & set(OVER_LISTS):
        return {}, []
    lists, digest = lists or draw_lists(records, NUM_OTHERS, num_queries or DRAWN_QUERIES, seed=0)
    pairs = _Pairs(records)
    positives, others = pairs.add_lists(lists)
    negatives = pairs.add_negatives(lists, any_category_negatives(lists, records)) if "matching" in protocols else None
    scores = score(pairs.array())

    positive = scores[positives]
    other = np.where(others >= 0, scores[others], -np.inf)  # [Q, G - 1], shorter lists filled up
    directions = np.array([x.direction for x in lists])
    figures = {}
    if "candidates" in protocols:
        for direction in dict.fromkeys(directions):
            here = directions == direction
            figures[str(direction)] = metrics.retrieval(positive[here], other[here])
    if "matching" in protocols:
        figures["matching"] = metrics.matching(positive, other[:, 0], decides)
        figures["matching"]["auc_any_category"] = metrics.auc(positive, scores[negatives])
        figures["matching"]["auc_any_category.ci"] = list(metrics.interval(metrics.auc, positive, scores[negatives]))
        if decides:
            right = np.concatenate([positive > 0, (other < 0)[others >= 0]])
            figures["matching"]["accuracy_1to100"] = float(right.mean())
    figures |= {
        "num_queries": int((directions == directions[0]).sum()),
        "candidates_per_list": float(np.mean([len(x.candidates) for x in lists])),
        "candidates_sha256": digest,
    }
    return figures, _rankings(lists, positive, other)


def _rankings(lists: list[CandidateList], positive: np.ndarray, other: np.ndarray) -> list[dict]:
    ranks = metrics.rank_of_positive(positive, other)
    rankings = []
    for x, rank, score, scores in zip(lists, ranks, positive, other, strict=True):
        best = np.argsort(-scores[: len(x.others)], kind="stable")[:TOP]
        top = [[x.others[i], float(scores[i])] for i in best]
        top.insert(int(rank) - 1, [x.positive, float(score)])
        named = {"direction": x.direction, "query": x.query, "positive": x.positive, "candidates": len(x.candidates)}
        rankings.append(named | {"rank": int(rank), "score": float(score), "top": top[:TOP]})
    return rankings


class _Pairs:
    """The distinct (text, image) pairs that all lists need, each scored once."""

    def __init__(self, records: Records):
        self._records = records
        self._rows = {identity: row for row, identity in enumerate(records.ids)}
        self._places: dict[tuple[int, int], int] = {}

    def add_lists(self, lists: list[CandidateList]) -> tuple[np.ndarray, np.ndarray]:
        """Places of the positives [Q] and the others [Q, G - 1], -1 past a list's end."""
        self._records.rows([i for x in lists for i in (x.query, *x.candidates)])  # all unknown ids in one error
        positives = np.array([self._place(x, x.positive) for x in lists])
        others = np.full((len(lists), max(len(x.others) for x in lists)), -1)
        for q, x in enumerate(lists):
            others[q, : len(x.others)] = [self._place(x, identity) for identity in x.others]
        return positives, others

    def add_negatives(self, lists: list[CandidateList], ids: list[str]) -> np.ndarray:
        """Places of one further product for each list, [Q]."""
        return np.array([self._place(x, identity) for x, identity in zip(lists, ids, strict=True)])

    def array(self) -> np.ndarray:
        """[N, 2]: rows of text and image."""
        return np.array(list(self._places), np.int64)

    def _place(self, x: CandidateList, candidate: str) -> int:
        pair = (self._rows[x.query], self._rows[candidate])
        pair = pair if x.direction == "text_to_image" else pair[::-1]
        return self._places.setdefault(pair, len(self._places))


def report(figures: dict, say: Callable[[str], None]) -> None:
    """The figures as a person reads them."""
    for direction in DIRECTIONS:
        if direction in figures:
            rates = metrics.spoken(figures[direction])
            say(f"{direction.replace('_', ' '):14} {rates}  (Rank@101 {figures[direction]['rank@101']:.0%})")
    if "matching" in figures:
        m = figures["matching"]
        decided = ""
        if "accuracy" in m:
            decided = f"  balanced accuracy {m['accuracy']:.1%}  at 1:100 {m['accuracy_1to100']:.1%}"
        say(
            f"{'matching':14} AUC {m['auc']:.3f} [{m['auc.ci'][0]:.3f}, {m['auc.ci'][1]:.3f}]"
            f"  any category {m['auc_any_category']:.3f}{decided}"
        )
    if "full" in figures:
        gallery.report(figures["full"], say)
    size = figures.get("candidates_per_list", NUM_OTHERS + 1)
    if size < NUM_OTHERS + 1:
        say(f"NOTE: {size:.0f} candidates a list on average, not {NUM_OTHERS + 1}: Rank@1 by chance is {1 / size:.0%}")
    about = []
    if "checkpoint_step" in figures:
        about.append(f"checkpoint {figures['checkpoint_step']}")
    if "num_queries" in figures:
        about.append(f"{figures['num_queries']} queries a direction, lists {figures['candidates_sha256'][:12]}")
    if "pairs_per_second" in figures:
        about.append(f"{figures['pairs_per_second']:.0f} pairs/s")
    if about:
        say(", ".join(about))
