"""Runs what requests ask for in threads; requests that ask for the same kind of thing are computed together."""

import asyncio
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fbjax.serve.web.limits import Limits

Asked, Answer = TypeVar("Asked"), TypeVar("Answer")
Together = Callable[[Sequence[Asked]], Sequence[Answer | Exception]]  # an answer, or an error, for each


class Busy(Exception):
    """Too many requests wait."""


@dataclasses.dataclass(frozen=True)
class Done:
    """An answer, the seconds that its request waited and was computed, and how many were computed together."""

    answer: Any
    waited: float
    seconds: float
    together: int


@dataclasses.dataclass
class _Job:
    compute: Together
    asked: Any
    alone: bool
    future: Future = dataclasses.field(default_factory=Future)
    came: float = dataclasses.field(default_factory=time.perf_counter)


class Workers:
    """Some threads and one queue. A free thread takes the first that waits, and with it others of the same function."""

    def __init__(self, limits: Limits):
        self._limits, self._pool, self._lock = limits, ThreadPoolExecutor(limits.workers), threading.Lock()
        self._waiting: collections.deque[_Job] = collections.deque()
        self._working = 0
        self.inside = 0  # requests that are computed or wait

    async def run(self, compute: Callable[[Sequence[Asked]], Sequence[Any]], asked: Asked, alone: bool = False) -> Done:
        """What ``compute([.., asked, ..])`` gives for `asked`; raises it where it is an exception.

        `alone`: nothing is gained by computing it together with others. Raises Busy where the queue is full,
        TimeoutError after the limit.
        """
        job = _Job(compute, asked, alone)
        with self._lock:
            if self.inside >= self._limits.workers + self._limits.waiting:
                raise Busy
            self.inside += 1
            self._waiting.append(job)
            if self._working < self._limits.workers:
                self._working += 1
                self._pool.submit(self._work)
        return await asyncio.wait_for(asyncio.wrap_future(job.future), self._limits.seconds)

    def _work(self) -> None:
        while jobs := self._take():
            begin = time.perf_counter()
            try:
                answers = list(jobs[0].compute([job.asked for job in jobs]))
            except Exception as error:
                answers = [error] * len(jobs)
            seconds = time.perf_counter() - begin
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(Done(answer, begin - job.came, seconds, len(jobs)))
            self._leave(len(jobs))

    def _take(self) -> list[_Job]:
        """The next jobs, of one function, at most `Limits.together`; none where nobody waits: the thread then ends."""
        with self._lock:
            taken: list[_Job] = []
            for job in list(self._waiting):
                if taken and not (self._fits(job, taken[0]) and len(taken) < self._limits.together):
                    continue
                self._waiting.remove(job)
                if job.future.set_running_or_notify_cancel():
                    taken.append(job)
                else:
                    self.inside -= 1  # its request ran out of time while it waited
            self._working -= not taken
            return taken

    def _fits(self, job: _Job, first: _Job) -> bool:
        return job.compute == first.compute and not (job.alone or first.alone)

    def _leave(self, number: int) -> None:
        with self._lock:
            self.inside -= number

    def close(self) -> None:
        """Waits for what is computed; what only waits is dropped."""
        with self._lock:
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
        self._pool.shutdown()
