"""Answers that are kept for queries that come again."""

import dataclasses
import threading
from collections.abc import Callable, Sequence

from cachetools import LRUCache

from fbjax.serve.search.query import Query, Results

MOST_BYTES = 100 * 2**20  # of all answers
QUERY_BYTES, HIT_BYTES = 20_000, 500  # at most of a query; of a hit beside the text of its fields

Answer = Results | Exception


class KeptAnswers:
    """Answers to queries without a picture; the least recently asked for goes first. Threads may share them."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most, self._answers = most_bytes, LRUCache(most_bytes, getsizeof=_size)
        self._lock, self._state = threading.Lock(), 0
        self.hits = self.misses = 0

    def look_up(self, queries: Sequence[Query], compute: Callable[[list[Query]], list[Answer]]) -> list[Answer]:
        """The answer to each of `queries`; ``compute`` gives those of the queries that have none, each once."""
        with self._lock:
            state = self._state
            found = {query: self._answers[query] for query in queries if query in self._answers}
            missing = [query for query in dict.fromkeys(queries) if query not in found]
            self.hits, self.misses = self.hits + len(queries) - len(missing), self.misses + len(missing)
        made = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        with self._lock:
            for query, answer in made.items():
                if query.image is None and isinstance(answer, Results) and state == self._state:
                    kept = dataclasses.replace(answer, seconds={})
                    if _size(kept) <= self._most:
                        self._answers[query] = kept
        return [(found | made)[query] for query in queries]

    def clear(self) -> None:
        """Forgets all, and what is computed now too: the products have changed."""
        with self._lock:
            self._state += 1
            self._answers.clear()


def _size(results: Results) -> int:
    """Bytes that an answer and its query take, about."""
    return QUERY_BYTES + sum(HIT_BYTES + 4 * len(repr(hit.product)) for hit in results.hits)
