"""What keeps a service answering: bounds on waiting requests, on the bytes of a request, on the time of an answer."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of a service."""

    workers: int = 2  # requests that are computed at once
    waiting: int = 64  # further requests that wait; beyond them the answer is 429
    seconds: float = 30.0  # for an answer, waiting included; beyond them it is 503
    bytes: int = 10 * 2**20  # of a request; beyond them the answer is 413


class Busy(Exception):
    """Too many requests wait."""


class Workers:
    """Runs functions in threads: some at once, some more in a queue, no more."""

    def __init__(self, limits: Limits):
        self._limits, self._pool, self._lock = limits, ThreadPoolExecutor(limits.workers), threading.Lock()
        self.inside = 0  # requests that are computed or wait

    async def run(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """The result of ``function(*arguments)``. Raises Busy where the queue is full, TimeoutError after the limit."""
        with self._lock:
            if self.inside >= self._limits.workers + self._limits.waiting:
                raise Busy
            self.inside += 1
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(lambda _: self._leave())  # a function that ran out of time still takes its worker
        return await asyncio.wait_for(asyncio.wrap_future(future), self._limits.seconds)

    def _leave(self) -> None:
        with self._lock:  # in the thread that computed
            self.inside -= 1

    def close(self) -> None:
        """Waits for what is computed; what only waits is dropped."""
        self._pool.shutdown(cancel_futures=True)


class BodyLimit:
    """An ASGI middleware: a request of more bytes is answered with 413, whatever length it claims."""

    def __init__(self, app: ASGIApp, most: int):
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > self._most:
            return await self._refuse(send)
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLarge:
            if begun:
                raise
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = b'{"error": "the request has more than %d bytes: send a smaller picture"}' % self._most
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLarge(Exception):
    pass
