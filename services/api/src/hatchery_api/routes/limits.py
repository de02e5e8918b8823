"""The limit on request bodies: read whole before the application sees it, refused beyond the limit by the route itself."""

from __future__ import annotations

from fastapi import Request
from hatchery_common.errors import BodyTooLarge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OVER = "hatchery.body_over"


async def require_size(request: Request) -> None:
    """Raises BodyTooLarge where BodyLimit found too much. A dependency of every route: only there it is known what was asked."""
    limit = request.scope.get(_OVER)
    if limit is not None:
        raise BodyTooLarge(f"the body exceeds {limit} bytes", hint="send less, or in parts")


class BodyLimit:
    """ASGI middleware: holds back a body over the limit, declared or not, for `require_size` to refuse."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        body = None if self._declared(scope) > self._max else await self._read(receive)
        if body is None:
            await self._app({**scope, _OVER: self._max}, _replayed(b"", receive), _closing(send))
            return
        await self._app(scope, _replayed(body, receive), send)

    @staticmethod
    def _declared(scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value[:20])
        return 0

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None when it is too large. A client that leaves early leaves what it sent."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            part = message.get("body", b"")
            size += len(part)
            if size > self._max:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _closing(send: Send) -> Send:
    """Says that the connection ends with this answer, since the rest of the body is never read."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closing


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then whatever the server still has to say (a disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
