"""Cuts a pipe's bytes into lines of bounded length."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINE = 16 * 1024


class LineReader(asyncio.Protocol):
    """Hands over line after line; what a line has beyond 16 KiB is dropped, never split into two."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = bytearray()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *whole, last = data.split(b"\n")
        for piece in whole:
            self._take(piece)
            self._emit()
        self._take(last)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._emit()
        if not self.closed.done():
            self.closed.set_result(None)

    def _take(self, piece: bytes) -> None:
        self._rest += piece[: MAX_LINE - len(self._rest)]

    def _emit(self) -> None:
        line = self._rest.decode("utf-8", "replace").rstrip("\r")
        self._rest.clear()
        self._on_line(line)
