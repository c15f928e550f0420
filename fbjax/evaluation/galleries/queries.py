"""Protocol ``queries``: text queries with relevant products, over a whole catalogue by the vectors of its images.

The file has one JSON object a line, ``{"query": text, "relevant": [ids]}``, as a shop's log or a public benchmark has
them. Recall@k is the number of relevant products among the first k, over the number of all relevant ones that the file
names, as in BEIR (Thakur et al. 2021); MRR@10 is the reciprocal rank of the best, 0 beyond 10. Ties count against the
model. Other products of a relevant one's group count as wrong.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from fbjax.core.paths import numbered_lines
from fbjax.evaluation import metrics
from fbjax.evaluation.galleries.gallery import cosines_in_parts

FORM = '{"query": text, "relevant": [ids]}'
READERS = ("queries", "mixed", "marqo")  # protocols that read such a file
CORRECTED = ("queries", "mixed")  # protocols that also give figures with a correction for hubs
TASK = "text-to-image"  # of protocol marqo, where a line names none
DEPTHS, MRR_DEPTH = (1, 10), 10
NO_WORDS, NOT_THERE, TRAINED = "without words", "without a relevant product in the data", "of training products"


@dataclasses.dataclass(frozen=True)
class QueryFile:
    """The queries of a file: their texts, and the distinct ids of the products that are relevant to each."""

    path: str
    texts: tuple[str, ...]
    relevant: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]  # of protocol marqo


@dataclasses.dataclass(frozen=True)
class Asked:
    """The Q queries of a file that can be asked of a gallery."""

    texts: list[str]
    rows: list[np.ndarray]  # of the relevant products in the gallery, at least one a query
    num_relevant: np.ndarray  # [Q]: those that the file names
    skipped: dict[str, int]  # reason -> number of queries


def read_request(protocols: Collection[str], relevant: str | Path | None, num_queries: int | None) -> QueryFile | None:
    """The file `relevant`, its first `num_queries`; None without one. Raises ValueError if it is missing or unused."""
    if not relevant:
        if "queries" in protocols:
            raise ValueError(f"protocol queries needs --relevant FILE.jsonl, with {FORM} a line")
        return None
    if not set(protocols) & set(READERS):
        raise ValueError(f"--relevant {relevant}: add {' or '.join(READERS)} to --protocol")
    return read_queries(relevant, num_queries)


def read_queries(path: str | Path, num_queries: int | None = None) -> QueryFile:
    """The first `num_queries` of a JSONL file (default: all). Raises ValueError with the number of a wrong line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no queries at {path}: give --relevant a file with {FORM} a line")
    parsed = [_parse(line, where) for where, line in numbered_lines(path)]
    if not parsed:
        raise ValueError(f"{path} has no query: give --relevant a file with {FORM} a line")
    return QueryFile(str(path), *zip(*parsed[:num_queries], strict=True))


def choose(
    file: QueryFile, ids: np.ndarray, has_words: Callable[[str], bool], trained: Collection[str] = frozenset()
) -> Asked:
    """The queries that can be asked of a gallery of `ids` [N].

    Skips those without words, with no relevant product in the gallery, or with one among `trained`. Raises ValueError
    if none is left.
    """
    place = {str(identity): row for row, identity in enumerate(ids)}
    skipped, texts, found, counts = collections.Counter(), [], [], []
    for text, relevant in zip(file.texts, file.relevant, strict=True):
        rows = [place[identity] for identity in relevant if identity in place]
        if not has_words(text):
            skipped[NO_WORDS] += 1
        elif any(identity in trained for identity in relevant):
            skipped[TRAINED] += 1
        elif not rows:
            skipped[NOT_THERE] += 1
        else:
            texts.append(text)
            found.append(np.array(rows))
            counts.append(len(relevant))
    if not texts:
        why = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        remedy = "give --relevant queries of other products" if skipped[TRAINED] else "name their tables with --data"
        raise ValueError(
            f"none of the {len(file.texts)} queries of {file.path} can be asked of {len(ids):,} products ({why}): is "
            f"this the catalogue of these ids? ({remedy})"
        )
    return Asked(texts, found, np.array(counts), dict(skipped))


def query_figures(
    queries: np.ndarray, gallery: np.ndarray, asked: Asked, penalties: np.ndarray | None = None
) -> dict[str, float | list]:
    """Recall@1, recall@10 and MRR@10 with their intervals, of ``queries [Q, E], gallery [N, E], penalties [N]``."""
    ranks = ranks_of_relevant(queries, gallery, asked.rows, penalties)
    figures = {}
    for k in DEPTHS:
        found = np.array([(mine <= k).sum() for mine in ranks]) / asked.num_relevant
        figures |= metrics.mean_of(f"recall@{k}", found)
    return figures | metrics.mean_reciprocal(np.array([mine[0] for mine in ranks]), MRR_DEPTH)


def ranks_of_relevant(
    queries: np.ndarray, gallery: np.ndarray, rows: list[np.ndarray], penalties: np.ndarray | None = None
) -> list[np.ndarray]:
    """The ranks of each query's relevant `rows`, ascending; every other product that ties with one is before it."""
    ranks = []
    for part, scores in cosines_in_parts(queries, gallery, penalties):
        for mine, relevant in zip(scores, rows[part], strict=True):
            own = np.sort(mine[relevant])[::-1]
            mine[relevant] = -np.inf
            ranks.append(1 + np.arange(len(own)) + (mine >= own[:, None]).sum(axis=1))
    return ranks


def about(asked: Asked, num_products: int) -> dict:
    """What every file of figures says of the queries."""
    return {"num_queries": len(asked.texts), "gallery": num_products, "skipped": asked.skipped}


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol."""
    size = f"{figures['num_queries']:,} queries, {figures['gallery']:,} products"
    metrics.print_row("queries", f"{spoken(figures)}  ({size})", say)
    if "corrected" in figures:
        metrics.print_row("hubs corrected", spoken(figures["corrected"]), say)
    print_skipped(figures["skipped"], say)


def print_skipped(skipped: dict[str, int], say: Callable[[str], None]) -> None:
    """One line on the queries that were not asked, if there are any."""
    if skipped:
        say("skipped: " + ", ".join(f"{count:,} queries {reason}" for reason, count in skipped.items()))


def spoken(figures: dict) -> str:
    """``Recall@1 12.3% [..]  Recall@10 ..  MRR@10 .327 [..]``"""
    recalls = "  ".join(f"Recall@{k} {metrics.with_interval(figures, f'recall@{k}')}" for k in DEPTHS)
    return f"{recalls}  {metrics.spoken_mrr(figures, MRR_DEPTH)}"


def _parse(line: str, where: str) -> tuple[str, tuple[str, ...], str]:
    try:
        fields = json.loads(line)
        text, relevant, task = fields["query"], fields["relevant"], fields.get("task", TASK)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is no query ({error!r}); it needs {FORM}") from None
    named = isinstance(relevant, list) and all(isinstance(x, str | int) and not isinstance(x, bool) for x in relevant)
    if not isinstance(text, str) or not isinstance(task, str) or not named:
        raise ValueError(f"{where} is no query (query {text!r}, relevant {relevant!r}); it needs {FORM}")
    return text, tuple(dict.fromkeys(map(str, relevant))), task
