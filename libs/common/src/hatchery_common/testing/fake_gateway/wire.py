"""A small HTTP/1.1 and WebSocket server on one port, on h11 and the sans-I/O half of websockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
from websockets.exceptions import InvalidState, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

MAX_BODY = 20 * 1024 * 1024
MAX_FRAME = 26_214_400
_CHUNK = 65_536


@dataclass(frozen=True)
class Request:
    """One HTTP request with lower-case header names (a repeated name keeps its last value)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: str

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return json.loads(self.body or b"null")


@dataclass(frozen=True)
class Response:
    """An answer: bytes at once, or an iterator of byte chunks that is streamed."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])


def json_response(status: int, value: Any) -> Response:
    """A JSON answer."""
    return Response(
        status, json.dumps(value, separators=(",", ":")).encode(), {"content-type": "application/json; charset=utf-8"}
    )


def text_response(status: int, text: str) -> Response:
    """A plain-text answer."""
    return Response(status, text.encode(), {"content-type": "text/plain; charset=utf-8"})


class Socket:
    """The server's end of one WebSocket: whole text messages in and out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ServerProtocol) -> None:
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self._parts: list[bytes] = []

    def send(self, value: Any) -> None:
        """Queues one JSON message; silently dropped once the peer is gone."""
        with suppress(InvalidState):
            self._protocol.send_text(json.dumps(value).encode())
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Starts the closing handshake."""
        with suppress(InvalidState):
            self._protocol.send_close(code, reason)
            self._flush()

    async def messages(self) -> AsyncIterator[str]:
        """Text messages until either side closes."""
        while self._protocol.state is not State.CLOSED:
            data = await self._reader.read(_CHUNK)
            if not data:
                self._protocol.receive_eof()
                return
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                text = self._assemble(event)
                if text is not None:
                    yield text
            self._flush()
            if self._protocol.close_expected() and self._protocol.state is not State.OPEN:
                return

    def _assemble(self, event: object) -> str | None:
        if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.CONT):
            return None
        self._parts.append(bytes(event.data))
        if not event.fin:
            return None
        whole, self._parts = b"".join(self._parts), []
        return whole.decode()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._writer.is_closing():
                self._writer.write(data)


Handler = Callable[[Request], Awaitable[Response]]
SocketHandler = Callable[[Request, Socket], Awaitable[None]]
UpgradeGuard = Callable[[Request], Response | None]


class Server:
    """Serves HTTP requests by one handler and WebSocket upgrades, on any path, by another."""

    def __init__(
        self, handler: Handler, socket_handler: SocketHandler | None = None, guard: UpgradeGuard = lambda _: None
    ) -> None:
        self._handler, self._socket_handler, self._guard = handler, socket_handler, guard
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port."""
        self._server = await asyncio.start_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stops listening and drops every connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, h11.ProtocolError, ProtocolError, UnicodeDecodeError, asyncio.CancelledError):
            pass  # the peer is gone or speaks nonsense, or we stop: the connection ends here either way
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername")[0])
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_CHUNK)
        while True:
            received = bytearray()
            head = await self._next(connection, reader, received)
            if not isinstance(head, h11.Request):
                return
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
            if headers.get("upgrade", "").lower() == "websocket" and self._socket_handler is not None:
                request = Request(head.method.decode(), head.target.decode(), headers, b"", peer)
                refused = self._guard(request)
                if refused is not None:
                    await self._answer(connection, refused, writer, head_only=False)
                    return
                await self._upgrade(request, bytes(received), reader, writer)
                return
            body = await self._body(connection, reader, received)
            request = Request(head.method.decode(), head.target.decode(), headers, body, peer)
            await self._answer(connection, await self._handler(request), writer, head_only=head.method == b"HEAD")
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _next(self, connection: h11.Connection, reader: asyncio.StreamReader, received: bytearray) -> object:
        while True:
            event = connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            data = await reader.read(_CHUNK)
            received += data
            connection.receive_data(data)

    async def _body(self, connection: h11.Connection, reader: asyncio.StreamReader, received: bytearray) -> bytes:
        body = bytearray()
        while isinstance(event := await self._next(connection, reader, received), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise ConnectionError("the body is too large")
        return bytes(body)

    async def _answer(
        self, connection: h11.Connection, response: Response, writer: asyncio.StreamWriter, *, head_only: bool
    ) -> None:
        body = response.body
        sized = {"content-length": str(len(body))} if isinstance(body, bytes) else {"transfer-encoding": "chunked"}
        headers = list({**response.headers, **sized}.items())
        reason = HTTPStatus(response.status).phrase.encode()
        head = h11.Response(status_code=response.status, headers=headers, reason=reason)
        writer.write(connection.send(head) or b"")
        if isinstance(body, bytes):
            if not head_only:
                writer.write(connection.send(h11.Data(data=body)) or b"")
        else:
            async for chunk in body:
                writer.write(connection.send(h11.Data(data=chunk)) or b"")
                await writer.drain()
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    async def _upgrade(
        self, request: Request, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        protocol = ServerProtocol(max_size=MAX_FRAME)
        protocol.receive_data(raw)
        for event in protocol.events_received():
            if isinstance(event, Handshake):
                protocol.send_response(protocol.accept(event))
        for data in protocol.data_to_send():
            writer.write(data)
        if protocol.state is State.OPEN and self._socket_handler is not None:
            await self._socket_handler(request, Socket(reader, writer, protocol))
        await writer.drain()
