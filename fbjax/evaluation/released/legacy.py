"""The miscount of the authors' release, to compare its published figures with correct ones.

The release (EasyTransfer, `scripts/fashion_bert`) predicts in batches of 64 pairs and prints the query ids of each as a
list; its Rank@K script splits that line at the commas. The first id of a batch has no leading space and is therefore
another key: a query that is ever first counts as two. The README of the release shows this: 1,826 keys image to text
and 1,786 text to image, of 1,000 queries each, with 444 / 845 / 942 and 517 / 857 / 931 hits. This makes 24 and 29 % at
rank 1 instead of 44 and 52 %. The paper's Table 1 has nearly these figures: it is probably affected (not verified).

Ties count against the model in both counts; in the release they depend on the order of the rows.
"""

import array
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fbjax.evaluation import metrics

BATCH = 64
COLUMNS = ("query", "label", "score")


def legacy_figures(
    queries: Sequence[str], positive: np.ndarray, scores: np.ndarray, batch_size: int = BATCH, seed: int | None = None
) -> dict:
    """``{"keys", "rank@1", .., "correct": {"queries", "without_positive", "rank@1", "rank@1.ci", ..}}``.

    Each of N rows is a pair: its query's id, whether it is a positive [N] bool, its score [N]. Rows form batches of
    `batch_size` in the given order or, with a `seed`, shuffled. "rank@k" is the share of keys whose positive is among
    their k best rows. A key without a positive is a miss, as is a query without one in "correct".
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    if not len(queries) == len(positive) == len(scores) or not len(scores):
        raise ValueError(f"{len(queries)} queries, {len(positive)} labels, {len(scores)} scores: give as many of each")
    if batch_size < 1:
        raise ValueError(f"a batch of {batch_size} rows: take at least 1")
    metrics.check_finite(scores)
    codes = np.unique(np.asarray(queries), return_inverse=True)[1].reshape(-1)
    order = np.arange(len(codes)) if seed is None else np.random.default_rng(seed).permutation(len(codes))
    codes, positive, scores = codes[order], positive[order], scores[order]
    is_first = np.arange(len(codes)) % batch_size == 0
    ranks = _ranks(2 * codes + is_first, positive, scores)
    figures = {"keys": len(ranks)} | {f"rank@{k}": float((ranks <= k).mean()) for k in metrics.RANKS}
    ranks = _ranks(codes, positive, scores)
    correct = {"queries": len(ranks), "without_positive": int(np.isinf(ranks).sum())}
    return figures | {"correct": correct | metrics.hit_rates(ranks)}


def _ranks(keys: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each distinct key the rank of its best positive among its rows; infinity if it has none."""
    keys = np.unique(keys, return_inverse=True)[1].reshape(-1)
    best = np.full(keys.max() + 1, -np.inf)
    np.maximum.at(best, keys[positive], scores[positive])
    before = np.bincount(keys[~positive], weights=scores[~positive] >= best[keys[~positive]], minlength=len(best))
    return np.where(np.isinf(best), np.inf, 1 + before)


def list_rows(positive: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (query, positive, score) of lists: ``positive [Q], others [Q, G - 1]``, -inf after the end of a list."""
    scores = np.concatenate([positive[:, None], others], axis=1)
    there = scores != -np.inf
    queries = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    is_positive = np.broadcast_to(np.arange(scores.shape[1]) == 0, scores.shape)
    return queries[there], is_positive[there], scores[there]


def read_scores(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``query<TAB>label<TAB>score`` of a file as (codes of queries, positive, scores) [N].

    A label is 1 or 0. The header ``query<TAB>label<TAB>score`` is optional. Errors name file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no scores at {path}")
    codes: dict[str, int] = {}
    queries, labels, scores = array.array("q"), array.array("b"), array.array("d")
    with open(path, encoding="utf-8-sig", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
            if cells == [""] or (number == 1 and tuple(cells) == COLUMNS):
                continue
            label, score = _parse(cells, f"{path} line {number}")
            queries.append(codes.setdefault(cells[0], len(codes)))
            labels.append(label)
            scores.append(score)
    if not any(labels):
        raise ValueError(f"{path} holds no row with label 1, of {len(scores):,}: nothing could be found")
    return np.array(queries), np.array(labels, bool), np.array(scores)


def _parse(cells: list[str], where: str) -> tuple[int, float]:
    if len(cells) != 3 or not cells[0]:
        raise ValueError(f"{where} is no row of {', '.join(COLUMNS)} with tabs between them: {cells!r:.200}")
    if cells[1] not in ("0", "1"):
        raise ValueError(f"{where}: label {cells[1]!r} is neither 1, the query's own, nor 0")
    try:
        score = float(cells[2])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: score {cells[2]!r} is no finite number")
    return int(cells[1]), score


def print_figures(figures: dict, label: str, say: Callable[[str], None]) -> None:
    """Prints both counts of `legacy_figures` with a `label`."""
    rates = "  ".join(f"Rank@{k} {figures[f'rank@{k}']:.1%}" for k in metrics.RANKS)
    correct = figures["correct"]
    say(f"{label:14} {rates}  (legacy: {figures['keys']:,} keys of {correct['queries']:,} queries)")
    say(f"{label:14} {metrics.spoken(correct)}  (correct)")
    if correct["without_positive"]:
        say(f"NOTE: {correct['without_positive']:,} queries have no row with label 1 and count as missed")


WARNING = "legacy: miscounted on purpose, as in the authors' release; for comparison with published figures only"
