"""BM25 (Robertson and Zaragoza 2009) over the texts of products: a shop's search without a model."""

import logging

import bm25s
import numpy as np

from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.log.events import described, join_log
from fbjax.evaluation.galleries import log
from fbjax.runs.run import CONFIG
from fbjax.runs.splits import open_splits
from fbjax.runs.stored_evaluation import write_log
from fbjax.runs.vocabulary import make_vocabulary

QUERIES_AT_ONCE = 256
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG itself


def bm25(config: Config, *, num_queries: int | None = None, workdir: str | None = None) -> dict:
    """The figures of protocol `log` for the config's log. `workdir`: folder that keeps them, for `fbjax compare`.

    Raises ValueError where the config has no log of queries, or the workdir holds a run.
    """
    if not config.log.table or config.log.has_pairs:
        raise ValueError("bm25 answers the queries of a log: give one with --config.log.table=TABLE")
    if workdir and (as_path(workdir) / CONFIG).exists():
        raise ValueError(f"--workdir {workdir} holds a run: choose another folder for the evaluation of bm25")
    vocabulary = make_vocabulary(config, say)
    splits = open_splits(config, vocabulary)
    joined = join_log(config.log, config.data, splits, vocabulary)
    for line in described(joined):
        say(line)
    asked, records = log.ask(joined.splits["validation"], num_queries), splits["validation"]
    scores = bm25_scores(asked.texts, records.strings(np.arange(len(records))))
    figures, ranks = log.figures_in(asked, {log.QUERY: {log.TEXT: scores}}, len(records))
    if workdir:
        as_path(workdir).mkdir(parents=True, exist_ok=True)
        write_log(workdir, {"figures": figures, "ranks": ranks})
    return {"log": figures}


def bm25_scores(queries: list[str], texts: list[str]) -> log.Scores:
    """Scores of `queries` over N `texts`, with bm25s's defaults: Lucene's form, k1 1.5, b .75, English stop words."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    words = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    for start in range(0, len(words), QUERIES_AT_ONCE):
        part = words[start : start + QUERIES_AT_ONCE]
        found = [index.get_scores(query) if query else np.zeros(len(texts)) for query in part]
        yield slice(start, start + len(part)), np.stack(found).astype(np.float32)
