"""What a model has computed of texts and images, kept within a bound: a shop's queries and products come again."""

import collections
import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["text", "image"]


class CacheInfo(NamedTuple):
    """How often an array was there (hits) or had to be computed (misses), by kind; and what is kept now."""

    text_hits: int
    text_misses: int
    image_hits: int
    image_misses: int
    entries: int
    bytes: int
    max_bytes: int


class Cache:
    """Arrays of texts and images by their content, at most `max_bytes` of them: the least recently used goes first.

    Threads may share it. It holds no model, so each model needs its own.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._arrays: collections.OrderedDict[tuple[Kind, bytes], np.ndarray] = collections.OrderedDict()
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def look_up(
        self, kind: Kind, keys: Sequence[bytes], compute: Callable[[np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        """The array of each of `keys`; ``compute(places [M])`` gives those of the keys that are not there, [M, ..]."""
        with self._lock:
            found = {key: array for key in set(keys) if (array := self._used(kind, key)) is not None}
            first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
            self._counts[f"{kind}_hits"] += len(found)
            self._counts[f"{kind}_misses"] += len(first)
        if first:
            missing = sorted(first, key=first.__getitem__)
            made = compute(np.array([first[key] for key in missing]))
            found |= {key: np.array(array) for key, array in zip(missing, made, strict=True)}
            with self._lock:
                for key in missing:
                    self._put(kind, key, found[key])
        return [found[key] for key in keys]

    def info(self) -> CacheInfo:
        with self._lock:
            counts = {f"{kind}_{what}": 0 for kind in ("text", "image") for what in ("hits", "misses")} | self._counts
            return CacheInfo(**counts, entries=len(self._arrays), bytes=self._bytes, max_bytes=self._max_bytes)

    def clear(self) -> None:
        """Forgets everything, the counts too."""
        with self._lock:
            self._arrays.clear()
            self._counts.clear()
            self._bytes = 0

    def _used(self, kind: Kind, key: bytes) -> np.ndarray | None:
        if (kind, key) in self._arrays:
            self._arrays.move_to_end((kind, key))
        return self._arrays.get((kind, key))

    def _put(self, kind: Kind, key: bytes, array: np.ndarray) -> None:
        if array.nbytes > self._max_bytes or (kind, key) in self._arrays:  # another thread was first
            return
        self._arrays[kind, key] = array
        self._bytes += array.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes


def content_key(content: bytes) -> bytes:
    """The name of some content: equal for equal content, and in practice for no other."""
    return blake2b(content, digest_size=16).digest()
