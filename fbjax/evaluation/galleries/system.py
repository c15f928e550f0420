"""Protocol ``system``: text queries with relevant products, asked of a search index as a customer would.

Words alone (BM25), vectors alone, and both are asked for the first 100 products; both also with the index's re-ranker,
where it has one. Rank@k is of the best relevant
product, recall@100 the share of all relevant ones; MRR@10 and nDCG@10 are 0 beyond 10. Seconds are of single requests,
one after another.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fbjax.core.console import progress
from fbjax.data.sources.cells import clean_text
from fbjax.evaluation import metrics
from fbjax.evaluation.asked import asked_of, wanted_log
from fbjax.evaluation.galleries import queries
from fbjax.serve.search.query import MOST_CHARACTERS, Query
from fbjax.serve.search.searching import Searcher

MODES, RERANKED = ("words", "dense", "hybrid"), "re-ranked"
DEPTH, NDCG_DEPTH = 100, 10
MISSED = 10**9  # the rank of a product that is not among the first `DEPTH`
PERCENTILES = (50, 95)


def evaluate_index(
    index: str | Path,
    *,
    workdir: str | Path | None = None,
    relevant: str | Path | None = None,
    log: str | None = None,
    num_queries: int | None = None,
    token: str = "",
) -> dict:
    """``{"system": figures, "checkpoint_step"}`` of the index at this location, for the queries of a file `relevant`.

    Without a file: for the validation events of the run's log, or of the table `log`. Raises ValueError where none of
    the queries has a relevant product in the index.
    """
    file = queries.read_queries(relevant, num_queries) if relevant else None
    with Searcher(index, token, workdir) as searcher:
        pairs = zip(file.texts, file.relevant, strict=True) if file else _of_log(searcher, log, num_queries)
        texts, wanted, skipped = _askable(pairs, searcher.collection.contents().keys())
        figures = system_figures(searcher, texts, wanted) | {"skipped": skipped}
        return {"system": figures, "checkpoint_step": searcher.collection.manifest["checkpoint_step"]}


def _of_log(searcher: Searcher, table: str | None, num_queries: int | None) -> Iterator[tuple[str, Sequence[str]]]:
    run = searcher.model.run
    asked, records = asked_of(run, wanted_log(run.config, table, "system"), num_queries)
    if asked.own is not None:
        raise ValueError("the log holds pairs of products, and protocol system asks queries: give --relevant FILE")
    yield from zip(asked.texts, ([str(records.ids[row]) for row in rows] for rows in asked.relevant), strict=True)


def _askable(
    pairs: Iterable[tuple[str, Sequence[str]]], there: Collection[str]
) -> tuple[list[str], list[Sequence[str]], dict[str, int]]:
    """Texts and ids of the relevant products of the queries that can be asked, and how many cannot, by the reason."""
    texts, wanted, skipped = [], [], Counter()
    for text, relevant in pairs:
        if not clean_text(text):
            skipped[queries.NO_WORDS] += 1
        elif len(text) > MOST_CHARACTERS:
            skipped[f"of more than {MOST_CHARACTERS:,} characters"] += 1
        elif not any(identity in there for identity in relevant):
            skipped[queries.NOT_THERE] += 1
        else:
            texts.append(text)
            wanted.append(relevant)
    if not texts:
        why = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        raise ValueError(f"no query can be asked of this index ({why}): is it of the catalogue that they are about?")
    return texts, wanted, dict(skipped)


def system_figures(searcher: Searcher, texts: Sequence[str], relevant: Sequence[Sequence[str]]) -> dict:
    """The figures of each mode, and by how much both together are ahead of each alone; `relevant`: ids a query."""
    figures: dict = {"num_queries": len(texts), "gallery": searcher.collection.count(), "modes": {}}
    best = {}
    asked = {mode: Query(mode=mode, top=DEPTH, rerank=False) for mode in MODES}
    if searcher.reranker:
        asked[RERANKED] = Query(mode="hybrid", top=DEPTH)
    for mode, query in asked.items():
        searcher.search(dataclasses.replace(query, text=texts[0]))  # compiles, loads
        found, seconds = [], []
        for text in progress(texts, len(texts), f"queries, {mode}"):
            searcher.model.cache_clear()  # each request is a new one
            searcher.forget_answers()
            results = searcher.search(dataclasses.replace(query, text=text))
            found.append([hit.product.id for hit in results.hits])
            seconds.append(results.seconds)
        ranks = [_ranks(ids, wanted) for ids, wanted in zip(found, relevant, strict=True)]
        best[mode] = np.array([mine[0] for mine in ranks])
        figures["modes"][mode] = _figures(ranks) | {"seconds": _percentiles(seconds)}
    figures["gains"] = {mode: metrics.gains(best["hybrid"], best[mode]) for mode in MODES[:2]}
    if RERANKED in best:
        figures["gains_of_reranking"] = metrics.gains(best[RERANKED], best["hybrid"])
    return figures


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol."""
    metrics.print_row("system", f"{figures['num_queries']:,} queries, {figures['gallery']:,} products", say)
    for mode, found in figures["modes"].items():
        low, high = found["ndcg@10.ci"]
        cells = f"{metrics.spoken(found)}  {metrics.spoken_mrr(found, 10)}  nDCG@10 {found['ndcg@10']:.3f}"
        metrics.print_row(mode, f"{cells} [{low:.3f}, {high:.3f}]", say)
    for mode, gains in figures["gains"].items():
        low, high = (f"{100 * bound:+.1f}" for bound in gains["gain@10.ci"])
        metrics.print_row(f"over {mode}", f"hybrid: Rank@10 {100 * gains['gain@10']:+.1f} [{low}, {high}] points", say)
    if gains := figures.get("gains_of_reranking"):
        for depth in (1, 10):
            low, high = (f"{100 * bound:+.1f}" for bound in gains[f"gain@{depth}.ci"])
            change = f"Rank@{depth} {100 * gains[f'gain@{depth}']:+.1f} [{low}, {high}] points"
            metrics.print_row("over hybrid", f"re-ranked: {change}", say)
    queries.print_skipped(figures["skipped"], say)
    for mode, found in figures["modes"].items():
        stages = (
            f"{stage} {1000 * times['p50']:.1f} ms (p95 {1000 * times['p95']:.1f})"
            for stage, times in found["seconds"].items()
        )
        metrics.print_row(f"time, {mode}", ", ".join(stages), say)


def _ranks(ids: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The ranks of all `wanted` among `ids`, ascending, `MISSED` for those that are not there."""
    place = {identity: rank for rank, identity in enumerate(ids, start=1)}
    return np.sort([place.get(identity, MISSED) for identity in wanted])


def _figures(ranks: list[np.ndarray]) -> dict:
    best = np.array([mine[0] for mine in ranks])
    recall = np.array([np.mean(mine <= DEPTH) for mine in ranks])
    figures = metrics.hit_rates(best) | metrics.mean_of(f"recall@{DEPTH}", recall)
    figures |= metrics.mean_reciprocal(best, NDCG_DEPTH)
    return figures | metrics.mean_of(f"ndcg@{NDCG_DEPTH}", np.array(list(map(_ndcg, ranks))))


def _ndcg(ranks: np.ndarray) -> float:
    """Of binary relevance (Järvelin and Kekäläinen 2002)."""
    gained = (1 / np.log2(1 + ranks[ranks <= NDCG_DEPTH])).sum()
    ideal = (1 / np.log2(1 + np.arange(1, 1 + min(len(ranks), NDCG_DEPTH)))).sum()
    return float(gained / ideal)


def _percentiles(seconds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        stage: {f"p{q}": float(np.percentile([each[stage] for each in seconds], q)) for q in PERCENTILES}
        for stage in seconds[0]
    }
