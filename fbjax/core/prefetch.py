"""Work that threads do ahead of its use, in order."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")
THREADS = 2


def prefetched(make: Callable[[int], Made], numbers: Iterable[int], ahead: int) -> Iterator[Made]:
    """``make(number)`` of each of `numbers` in order, at most `ahead` of them made before they are asked for.

    An error of `make` is raised where its result would come. Close the generator to end the threads.
    """
    numbers = iter(numbers)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch") as pool:
        waiting = collections.deque(pool.submit(make, number) for number in itertools.islice(numbers, ahead))
        try:
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, number) for number in itertools.islice(numbers, 1))
                yield made
        finally:
            for future in waiting:
                future.cancel()
