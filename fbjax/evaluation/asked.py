"""Protocol ``log`` of a run: the queries that it is asked, and its answers by vectors or by match scores."""

import dataclasses

from fbjax.config.data import LogConfig
from fbjax.config.schema import Config
from fbjax.core.console import progress, say
from fbjax.data.batches.split import Split
from fbjax.data.log.events import described, framed_queries, join_log
from fbjax.evaluation.galleries import log
from fbjax.inference.pair_scorer import PairScorer
from fbjax.inference.query_scorer import QueryScorer
from fbjax.inference.token_scorer import TokenScorer
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run


def wanted_log(config: Config, table: str | None, protocol: str = "log") -> LogConfig:
    """The run's log, or `table` in its place. Raises ValueError where there is none."""
    if not (table or config.log.table):
        other = "--log groups" if protocol == "log" else "--relevant FILE"
        raise ValueError(f"protocol {protocol} needs a log, and the run has none: give --log TABLE, or {other}")
    return dataclasses.replace(config.log, table=table) if table else config.log


def asked_of(run: Run, config: LogConfig, num_queries: int | None) -> tuple[log.Asked, Split]:
    """The first `num_queries` queries of a log's validation events, and the validation products."""
    splits = run.splits()
    joined = join_log(config, run.config.data, splits, run.vocabulary)
    for line in described(joined):
        say(line)
    return log.ask(joined.splits["validation"], num_queries), splits["validation"]


def figures_of_vectors(vectors, records: Split, asked: log.Asked, config: LogConfig) -> tuple[dict, dict]:
    """`log.log_figures` of `vectors`, those of a run that makes them."""
    gallery = {unit: vectors.of(records, unit) for unit in log.UNITS}
    if asked.own is None:
        framed = framed_queries(asked.texts, vectors.giver.run.vocabulary, config.query_tokens)
        queries = {log.QUERY: vectors.of_queries(framed)}
    else:
        queries = {unit: of_all[asked.own] for unit, of_all in gallery.items()}
    return log.log_figures(asked, queries, gallery)


def figures_of_scores(
    loaded: LoadedRun, records: Split, asked: log.Asked, scorer: PairScorer | TokenScorer
) -> tuple[dict, dict]:
    """`log.list_figures` of a run that scores pairs, for queries that are texts."""
    lists = log.draw_lists(asked, records.categories, records.groups)
    scores = QueryScorer(loaded.run, records, scorer, asked.texts, lists).scores(loaded.variables, progress)
    return log.list_figures(asked, scores)
