"""The events of a run's log: which a training draws, and a sample of the validation's, scored at each save."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fbjax.core.console import say
from fbjax.data.batches.split import Split
from fbjax.data.log.batches import Queries
from fbjax.data.log.events import Events, Joined, described, framed_queries, join_log
from fbjax.evaluation import metrics
from fbjax.evaluation.galleries import log
from fbjax.inference.embedder import Embedder
from fbjax.inference.pair_scorer import PairScorer
from fbjax.inference.query_scorer import QueryScorer
from fbjax.inference.token_scorer import TokenScorer
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.run import Run
from fbjax.training.validation import mean_reciprocal_rank


@dataclasses.dataclass(frozen=True)
class RunEvents:
    """The events of a run; of one that reads no log there are none."""

    run: Run
    joined: Joined | None = None
    train: Events | None = None  # each as often as an epoch has it
    queries: Queries | None = None  # of `train`

    @property
    def digest(self) -> str:
        """A hash of the events that are drawn, "" without a log."""
        return self.train.digest if self.train else ""

    @property
    def drawn(self) -> tuple:
        """(rows of products, rows of partners or None) for a `Sampler`; () without a log."""
        return (self.train.rows, self.train.others) if self.train else ()

    def sample(
        self, validation: Split, scorer: PairScorer | TokenScorer | Embedder
    ) -> "EventSample | ListSample | None":
        """A sample of the validation events, where there are some."""
        events = self.joined and self.joined.splits["validation"].matching()
        if not events or len(np.unique(validation.groups[events.rows])) < 2:
            return None
        if isinstance(scorer, Embedder):
            return EventSample(self.run, validation, events, scorer)
        return None if events.queries is None else ListSample(self.run, validation, events, scorer)


def open_events(run: Run, splits: Mapping[str, Split]) -> RunEvents:
    """The events of the run's log, joined to its `splits`. Says what they are, and which were skipped."""
    config, records = run.config, splits["train"]
    if not config.log.table:
        return RunEvents(run)
    if not (config.reads_queries or config.reads_partners):
        raise ValueError(f"log.table {config.log.table} is read by no task (add one that reads a log, or set it to '')")
    joined = join_log(config.log, config.data, splits, run.vocabulary)
    for line in described(joined):
        say(line)
    train = joined.splits["train"].of_half(records.groups, config.train.half).repeated()
    train = train if config.reads_labels else train.matching()
    if not len(train):
        raise ValueError(f"log.table {config.log.table}: no event of a match is left to train on")
    kinds = {"negatives": config.draws_queries, "labelled": config.reads_labels}
    has_queries = train.queries is not None
    queries = Queries.of(train, run.vocabulary, config.log.query_tokens, **kinds) if has_queries else None
    return RunEvents(run, joined, train, queries)


class EventSample:
    """A fixed sample of validation events.

    "mrr": of each product by its query or partner, and the other way round; "auc": of their cosines against those of
    other groups.
    """

    def __init__(self, run: Run, records: Split, events: Events, embedder: Embedder):
        train = run.config.train
        places = np.random.default_rng(train.seed).permutation(len(events))[: train.evaluate_products]
        events = events.at(np.sort(places))
        self._run, self._records, self._embedder, self.size = run, records, embedder, len(events)
        self._events, self._groups, self._queries = events, records.groups[events.rows], None
        if events.queries is not None:
            self._queries = framed_queries(events.queries, run.vocabulary, run.config.log.query_tokens)

    def figures(self, variables: Any) -> dict[str, float]:
        if self._queries is None:
            others = self._products(variables, self._events.others)
        else:
            others = self._embedder.embed_queries(variables, self._queries)
        cosines = others @ self._products(variables, self._events.rows).T
        apart = self._groups[:, None] != self._groups
        auc = metrics.auc(np.diagonal(cosines), cosines[apart])
        return {"auc": auc, "mrr": mean_reciprocal_rank(cosines, self._groups)}

    def _products(self, variables: Any, rows: np.ndarray) -> np.ndarray:
        def read(places):
            return image_inputs(self._run, self._records, rows[places], self._embedder.batch_size)

        return self._embedder.embed_products(variables, text_inputs(self._run, self._records, rows), read)


class ListSample:
    """A fixed sample of validation events, each with one other product of its category: "auc" of their match scores."""

    def __init__(self, run: Run, records: Split, events: Events, scorer: PairScorer | TokenScorer):
        asked = log.ask(events, run.config.train.evaluate_products)
        self.size = len(asked)
        self._lists = log.draw_lists(asked, records.categories, records.groups, num_others=1)
        self._scorer = QueryScorer(run, records, scorer, asked.texts, self._lists)

    def figures(self, variables: Any) -> dict[str, float]:
        own, other = self._scorer.scores(variables).T
        there = self._lists[:, 1] >= 0
        return {"auc": metrics.auc(own, other[there])}
