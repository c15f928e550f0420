"""The protocols of an evaluation (paper, section 4), over any function that scores pairs of a text and an image.

* ``candidates``: Rank@1/5/10 of the positive among each list's candidates, in both directions.
* ``matching``: AUC of each list's positive against its first other candidate (same sub-category), and against a product
  of any category. If a score above 0 means "match", also balanced accuracy, the accuracy over whole lists, 1 to 100,
  and the calibration of scores as probabilities, see `fbjax.evaluation.matching.calibration`.
* ``draws``: ``candidates`` over five drawings of lists, seeds 0 to 4: mean and standard deviation.
* ``legacy``: the lists of ``candidates`` with the miscount of the authors' release, see `fbjax.evaluation.released`.
* ``full``: retrieval from a whole split, see `fbjax.evaluation.galleries.gallery`.
* ``queries``: text queries of a file over a whole catalogue, see `fbjax.evaluation.galleries.queries`.
* ``mixed``: new products among trained ones, see `fbjax.evaluation.galleries.mixed`.
* ``marqo``: the benchmark of Marqo-FashionSigLIP, see `fbjax.evaluation.galleries.marqo`.
* ``log``: the validation events of a log, see `fbjax.evaluation.galleries.log`.
* ``attributes``: columns of the product table, see `fbjax.evaluation.recognition.attributes`.
* ``captioning``: captions beside texts, see `fbjax.evaluation.captions.captioning`.
* ``system``: text queries asked of a search index, see `fbjax.evaluation.galleries.system`.

docs/reference/protocols.md says when to use which. `score` maps pairs [N, 2] of rows (text, image) of the records to
scores [N].
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fbjax.data.batches.halves import half_of
from fbjax.data.batches.split import Split
from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS, CandidateList, any_category_negatives, draw_lists, read_lists
from fbjax.evaluation.captions import captioning
from fbjax.evaluation.galleries import gallery, log, marqo, mixed, queries, system
from fbjax.evaluation.matching.calibration import calibration, print_calibration
from fbjax.evaluation.recognition import attributes
from fbjax.evaluation.released import legacy

Score = Callable[[np.ndarray], np.ndarray]
Lists = tuple[list[CandidateList], str]  # and their SHA-256
OVER_LISTS = ("candidates", "matching")
PROTOCOLS = (*OVER_LISTS, "draws", "legacy", "full", "queries", "mixed", "marqo", "log", "attributes", "captioning")
WITHOUT_LISTS = {"draws", "full", "queries", "mixed", "marqo", "log", "attributes", "captioning"}
NUM_OTHERS, DRAWN_QUERIES = 100, 1000  # of lists drawn here, as in the paper
DRAW_SEEDS = (0, 1, 2, 3, 4)
LEGACY_SEED = 0  # of the order of the rows in batches
TOP = 5
BY_GALLERY = {"full": gallery, "queries": queries, "mixed": mixed, "marqo": marqo, "log": log, "system": system}
PRINTED = BY_GALLERY | {"attributes": attributes, "captioning": captioning}


def read_request(protocols: tuple[str, ...], candidates: str | None, num_queries: int | None) -> Lists | None:
    """Checks a request (ValueError) and reads the lists of the file `candidates`, if given."""
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"unknown protocol {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(PROTOCOLS)}")
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"--queries {num_queries}: take at least 1")
    if candidates and set(protocols) <= WITHOUT_LISTS:
        named = ", ".join(protocols)
        raise ValueError(f"--candidates {candidates}: {named} reads no lists; add candidates to --protocol")
    return read_lists(candidates, num_queries) if candidates else None


def list_figures(
    records: Split,
    protocols: tuple[str, ...],
    lists: Lists | None,
    num_queries: int | None,
    score: Score,
    scores_matches: bool,
) -> tuple[dict, list[dict]]:
    """The figures of the protocols over lists, and each query's ranking of ``candidates`` and ``matching``.

    ({}, []) without such a protocol. `lists` None: drawn from the records, seed 0. `scores_matches`: whether a score
    above 0 means "match". A ranking is {"direction", "query", "positive", "candidates": their number, "rank" and
    "score" of the positive, "top": the first [id, score]s}. Scores every distinct pair of all protocols once.
    """
    pairs, num_drawn = _Pairs(records), num_queries or DRAWN_QUERIES
    asked = negatives = None
    if set(protocols) & {*OVER_LISTS, "legacy"}:
        lists, digest = lists or draw_lists(records, NUM_OTHERS, num_drawn, seed=0)
        asked = pairs.add_lists(lists, digest)
        if "matching" in protocols:
            negatives = pairs.add_products(lists, any_category_negatives(lists, records))
    seeds = DRAW_SEEDS if "draws" in protocols else ()
    drawn = [pairs.add_lists(*draw_lists(records, NUM_OTHERS, num_drawn, seed)) for seed in seeds]
    if not (asked or drawn):
        return {}, []
    scores = score(pairs.array())

    figures = {"draws": _draw_figures([x(scores) for x in drawn])} if drawn else {}
    if asked is None:
        return figures, []
    scored = asked(scores)
    if "candidates" in protocols:
        figures |= {d: metrics.retrieval(*scored.of(d)) for d in scored.directions}
    if "matching" in protocols:
        first = half_of(records.groups[records.rows([x.query for x in lists])])
        figures["matching"] = _matching_figures(scored, scores[negatives], scores_matches, first)
    if "legacy" in protocols:
        rows = {d: legacy.list_rows(*scored.of(d)) for d in scored.directions}
        figures["legacy"] = {d: legacy.legacy_figures(*rows[d], seed=LEGACY_SEED) for d in scored.directions}
    figures |= scored.about
    if not set(protocols) & set(OVER_LISTS):
        return figures, []
    return figures, _rankings(lists, scored.positive, scored.other)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Lists with the scores of their candidates."""

    lists: list[CandidateList]
    digest: str
    positive: np.ndarray  # [Q]
    other: np.ndarray  # [Q, G - 1], -inf after the end of a list

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(x.direction for x in self.lists))

    def of(self, direction: str) -> tuple[np.ndarray, np.ndarray]:
        """Positive and other scores of one direction."""
        here = np.array([x.direction == direction for x in self.lists])
        return self.positive[here], self.other[here]

    @property
    def about(self) -> dict:
        return {
            "num_queries": sum(x.direction == self.lists[0].direction for x in self.lists),
            "candidates_per_list": float(np.mean([len(x.candidates) for x in self.lists])),
            "candidates_sha256": self.digest,
        }


def _matching_figures(scored: _Scored, negative: np.ndarray, scores_matches: bool, first: np.ndarray) -> dict:
    """`negative` [Q]: scores of products of any category. `first` [Q]: queries of the first half of the groups."""
    positive, other = scored.positive, scored.other
    figures = metrics.matching(positive, other[:, 0], scores_matches)
    figures["auc_any_category"] = metrics.auc(positive, negative)
    figures["auc_any_category.ci"] = list(metrics.interval(metrics.auc, positive, negative))
    if scores_matches:
        right = np.concatenate([positive > 0, (other < 0)[other != -np.inf]])
        figures["accuracy_1to100"] = float(right.mean())
        figures["calibration"] = calibration(positive, other[:, 0], fitted=first)
    return figures


def _draw_figures(drawn: list[_Scored]) -> dict:
    """Mean, standard deviation (of a sample) and each drawing's hit rates; seeds and lists."""
    figures = {}
    for direction in drawn[0].directions:
        ranks = [metrics.rank_of_positive(*x.of(direction)) for x in drawn]
        figures[direction] = {}
        for k in metrics.RANKS:
            each = [float((r <= k).mean()) for r in ranks]
            rates = {"": float(np.mean(each)), ".std": float(np.std(each, ddof=1)), ".each": each}
            figures[direction] |= {f"rank@{k}{ending}": value for ending, value in rates.items()}
    about = [x.about for x in drawn]
    return figures | {"seeds": list(DRAW_SEEDS)} | {name: [x[name] for x in about] for name in about[0]}


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
    """The distinct (text, image) pairs of all lists, each scored once."""

    def __init__(self, records: Split):
        self._records = records
        self._rows = {identity: row for row, identity in enumerate(records.ids)}
        self._places: dict[tuple[int, int], int] = {}

    def add_lists(self, lists: list[CandidateList], digest: str) -> Callable[[np.ndarray], _Scored]:
        """Adds the pairs of `lists`; returns a function from all pairs' scores to those of `lists`."""
        self._records.rows([i for x in lists for i in (x.query, *x.candidates)])  # all unknown ids in one error
        positives = self.add_products(lists, [x.positive for x in lists])
        others = np.full((len(lists), max(len(x.others) for x in lists)), -1)
        for q, x in enumerate(lists):
            others[q, : len(x.others)] = [self._place(x, identity) for identity in x.others]
        there = others >= 0
        return lambda s: _Scored(lists, digest, s[positives], np.where(there, s[others], -np.inf))

    def add_products(self, lists: list[CandidateList], ids: list[str]) -> np.ndarray:
        """Adds the pair of each list with one product; returns the places [Q] of the pairs."""
        return np.array([self._place(x, identity) for x, identity in zip(lists, ids, strict=True)])

    def array(self) -> np.ndarray:
        """[N, 2]: rows of text and image."""
        return np.array(list(self._places), np.int64)

    def _place(self, x: CandidateList, candidate: str) -> int:
        pair = (self._rows[x.query], self._rows[candidate])
        pair = pair if x.direction == "text_to_image" else pair[::-1]
        return self._places.setdefault(pair, len(self._places))


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures."""
    for direction in DIRECTIONS:
        if direction in figures:
            rates = figures[direction]
            metrics.print_row(direction, f"{metrics.spoken(rates)}  (Rank@101 {rates['rank@101']:.0%})", say)
    if m := figures.get("matching"):
        more = "  any category {auc_any_category:.3f}"
        if "accuracy" in m:
            more += "  balanced accuracy {accuracy:.1%}  at 1:100 {accuracy_1to100:.1%}"
        metrics.print_matching(m, more.format(**m), say)
        if "calibration" in m:
            print_calibration(m["calibration"], say)
    if "draws" in figures:
        _print_draws(figures["draws"], say)
    if "legacy" in figures:
        say(legacy.WARNING)
        for direction, rates in figures["legacy"].items():
            legacy.print_figures(rates, direction.replace("_", " "), say)
    for name, protocol in PRINTED.items():
        if name in figures:
            protocol.print_figures(figures[name], say)
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


def _print_draws(figures: dict, say: Callable[[str], None]) -> None:
    queries, size = figures["num_queries"], np.mean(figures["candidates_per_list"])
    drawn = f"{len(queries)} drawings of {min(queries):,} queries a direction, {size:.0f} candidates a list"
    metrics.print_row("draws", f"{drawn}; mean and standard deviation over drawings", say)
    for direction in DIRECTIONS:
        if direction in figures:
            rates = figures[direction]
            cells = [f"Rank@{k} {rates[f'rank@{k}']:.1%} ±{100 * rates[f'rank@{k}.std']:.1f}" for k in metrics.RANKS]
            each = ", ".join(f"{100 * rate:.1f}" for rate in rates["rank@1.each"])
            metrics.print_row(direction, f"{'  '.join(cells)}  (Rank@1 of each: {each})", say)
