"""Answers that are kept for queries that come again."""

import dataclasses
import threading
from collections.abc import Callable, Sequence

from cachetools import LRUCache

from fbjax.serve.search.query import Query, Results

MOST_HITS = 50_000  # of all answers: some 100 MB with texts of 500 characters

Answer = Results | ValueError


class KeptAnswers:
    """Answers to queries without a picture; the least recently asked for goes first. Threads may share them."""

    def __init__(self, most_hits: int = MOST_HITS):
        self._answers: LRUCache = LRUCache(most_hits, getsizeof=lambda results: 1 + len(results.hits))
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
                    self._answers[query] = dataclasses.replace(answer, seconds={})
        return [(found | made)[query] for query in queries]

    def clear(self) -> None:
        """Forgets all, and what is computed now too: the products have changed."""
        with self._lock:
            self._state += 1
            self._answers.clear()
