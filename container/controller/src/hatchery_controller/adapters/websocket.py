"""A WebSocket client of the smallest kind: text frames to a server on this machine, pings answered, nothing else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_MESSAGE = 4 * 1024 * 1024
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class WebSocketFailed(OSError):
    """The server did not speak WebSocket, said too much, or closed."""


class WebSocket:
    """One open connection. The caller bounds its life with a timeout and closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, host: str, port: int, headers: dict[str, str]) -> WebSocket:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            await _handshake(reader, writer, f"{host}:{port}", headers)
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer)

    async def send(self, text: str) -> None:
        await self._send_frame(_TEXT, text.encode())

    async def receive(self) -> str:
        """The next whole text message; raises WebSocketFailed when the server closes."""
        message = bytearray()
        while True:
            final, kind, payload = await self._frame()
            if kind == _PING:
                await self._send_frame(_PONG, payload)
            elif kind == _CLOSE:
                raise WebSocketFailed(f"closed by the gateway: {payload[2:].decode('utf-8', 'replace')}")
            elif kind != _PONG:
                message += payload
                if len(message) > _MAX_MESSAGE:
                    raise WebSocketFailed("message too large")
                if final:
                    return message.decode("utf-8", "replace")

    def close(self) -> None:
        self._writer.close()

    async def _send_frame(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | kind, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | kind, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | kind, 0x80 | 127, size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._writer.write(head + mask + masked)
        await self._writer.drain()

    async def _frame(self) -> tuple[bool, int, bytes]:
        try:
            first, second = await self._reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
            if size > _MAX_MESSAGE or second & 0x80:
                raise WebSocketFailed("a frame that no server may send")
            return bool(first & 0x80), first & 0x0F, await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise WebSocketFailed("the connection ended") from None


async def _handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, headers: dict[str, str]
) -> None:
    key = base64.b64encode(os.urandom(16))
    lines = ["GET / HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise WebSocketFailed("no WebSocket answer") from None
    status, _, rest = answer.partition(b"\r\n")
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - the protocol's own checksum
    if not status.startswith(b"HTTP/1.1 101") or accept not in rest:
        raise WebSocketFailed("the gateway refused the WebSocket")
