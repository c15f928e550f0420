"""Batches of events: those of their products, with the query or the other product of each."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from fbjax.data.batches.batch import Batch
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import Split
from fbjax.data.log.events import Events, framed_queries, query_key
from fbjax.data.text.wordpiece import PAD_ID, Vocabulary


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries of M events, as batches hold them; an event is a place of the sampler."""

    framed: np.ndarray  # [M, Q] int32
    rows: np.ndarray  # [M]: their products
    codes: np.ndarray  # [M]: equal for equal queries
    labels: np.ndarray | None = None  # [M] int; None where all match
    draws_negatives: bool = False

    @classmethod
    def of(cls, events: Events, vocabulary: Vocabulary, num_tokens: int, *, negatives: bool, labelled: bool):
        """Those of `events`: with negatives drawn for them, or with their labels."""
        framed = framed_queries(events.queries, vocabulary, num_tokens)
        codes = np.unique([query_key(text) for text in events.queries], return_inverse=True)[1]
        return cls(framed, events.rows, codes, events.labels if labelled else None, negatives)

    def added_to(self, batch: Batch, places: np.ndarray, negatives: np.ndarray) -> Batch:
        """A `batch` of the events at `places`, with their queries, and those of the events at `negatives`."""
        negative = self._negatives(places, negatives) if self.draws_negatives else None
        label = None if self.labels is None else self.labels[places].astype(np.int32)
        return batch._replace(query=self.framed[places], negative_query=negative, label=label)

    def _negatives(self, places: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Framed queries of `negatives`, all [PAD] where an event has that query for the product at `places`."""
        wanted = self._pairs(self.rows[places], self.codes[negatives])
        found = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return np.where((self._known[found] == wanted)[:, None], np.int32(PAD_ID), self.framed[negatives])

    @cached_property
    def _known(self) -> np.ndarray:
        """The pairs of product and query that the events have, sorted."""
        return np.unique(self._pairs(self.rows, self.codes))

    def _pairs(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return rows * (self.codes.max() + 1) + codes


def train_batches(
    records: Split,
    sampler: Sampler,
    vocabulary: Vocabulary,
    queries: Queries | None,
    *,
    start: int = 0,
    share: np.ndarray | None = None,
    **options,
) -> Iterator[Batch]:
    """`Split.train_batches`, with the queries of the sampler's places, or with partners, where it has any.

    A generator: close it to end its reading ahead.
    """
    options |= {"start": start, "share": share}
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(records.train_batches(sampler, vocabulary, **options)))
        if queries is not None:
            mine = slice(None) if share is None else share
            for step, batch in enumerate(batches, start=start):
                yield queries.added_to(batch, *(of[mine] for of in sampler.places(step)))
        elif sampler.partners is not None:
            options |= {"with_negatives": False}
            partners = records.train_batches(sampler.of_partners(), vocabulary, **options)
            partners = stack.enter_context(contextlib.closing(partners))
            for batch, partner in zip(batches, partners, strict=True):
                yield batch._replace(partner=partner)
        else:
            yield from batches
