"""The controller's own HTTP/1.1 server: small requests, small answers, hard limits, h11 underneath."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

MAX_BODY = 16 * 1024
MAX_HEAD = 16 * 1024
MAX_CONNECTIONS = 64
MAX_SWALLOWED = 4 * 1024 * 1024
HANG_UP_DEADLINE = 2.0
READ_DEADLINE = 10.0  # for a whole request; also how long an idle connection is kept


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Refused(Exception):
    """A request that is answered and then hung up on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpServer:
    """Serves one handler until closed."""

    def __init__(
        self, handler: Callable[[Request], Awaitable[Response]], error_body: Callable[[int, str], bytes]
    ) -> None:
        self._handler = handler
        self._error_body = error_body
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=64 * 1024)

    async def close(self, grace: float) -> None:
        """Stops listening and lets running answers finish for a moment."""
        if self._server is not None:
            self._server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=grace)
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            if len(self._open) > MAX_CONNECTIONS:
                raise Refused(503, "too many connections")
            while True:
                async with asyncio.timeout(READ_DEADLINE):
                    request = await _read(connection, reader, writer)
                if request is None:
                    return
                await _send(connection, writer, await self._handler(request))
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except Refused as refused:
            await self._hang_up(connection, reader, writer, refused.status, str(refused))
        except h11.RemoteProtocolError as error:
            await self._hang_up(connection, reader, writer, error.error_status_hint, "malformed request")
        except (TimeoutError, OSError, h11.LocalProtocolError):
            pass
        finally:
            writer.close()

    async def _hang_up(
        self,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        status: int,
        why: str,
    ) -> None:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            async with asyncio.timeout(HANG_UP_DEADLINE):
                await _send(connection, writer, Response(status, self._error_body(status, why)), close=True)
                await _swallow(reader, writer)
        except (TimeoutError, OSError, h11.LocalProtocolError):
            pass


async def _read(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """The next request; None when the client is done. Raises Refused for a body that is too large."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
            length = dict(event.headers).get(b"content-length", b"0")
            if int(length) > MAX_BODY:
                raise Refused(413, "body too large")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise Refused(413, "body too large")
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            method, target = head.method.decode("latin-1"), head.target.decode("latin-1")
            return Request(method, target, list(head.headers), bytes(body))
        else:
            return None


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads on for a moment: closing with unread bytes would reset the connection and lose our answer."""
    writer.write_eof()
    left = MAX_SWALLOWED
    while left > 0 and (piece := await reader.read(65536)):
        left -= len(piece)


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, response: Response, *, close: bool = False
) -> None:
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Cache-Control", "no-store"),
    ]
    if close:
        headers.append(("Connection", "close"))
    # h11 drops the body itself where a HEAD request asks for none. One write: a second one would wait for a delayed ACK.
    head = h11.Response(status_code=response.status, headers=headers)
    parts = (head, h11.Data(data=response.body), h11.EndOfMessage())
    writer.write(b"".join(connection.send(part) or b"" for part in parts))
    await writer.drain()
