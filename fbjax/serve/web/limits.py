"""What keeps a service answering: bounds on waiting requests, on the bytes of a request, on the time of an answer."""

import contextlib
import dataclasses

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of a service."""

    workers: int = 2  # threads that compute
    together: int = 8  # requests that a thread computes together
    waiting: int = 64  # further requests that wait; beyond them the answer is 429
    seconds: float = 30.0  # for an answer, waiting included; beyond them it is 503
    bytes: int = 10 * 2**20  # of a request; beyond them the answer is 413


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
        read, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most and not begun:
                refused = True
                await self._refuse(send)
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if not refused:  # what the application makes of the refusal is not sent
                begun = True
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self._app(scope, counted, noted)

    async def _refuse(self, send: Send) -> None:
        body = b'{"error": "the request has more than %d bytes: send a smaller picture"}' % self._most
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLarge(Exception):
    pass
