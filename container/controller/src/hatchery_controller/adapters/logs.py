"""Redacted log lines: the latest in memory, more in a file whose size is bounded."""

from __future__ import annotations

import os
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hatchery_controller.domain.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_SHOWN = 8 * 1024  # after redaction, so that a cut never leaves half a secret
RING_LINES = 2000
RING_BYTES = 1024 * 1024
KEPT_FILES = 3


class LogStore:
    """The Log port. A full disk costs lines in the file, never the gateway."""

    def __init__(self, max_bytes: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._redact: Callable[[str], str] = Redactor()
        self._max_bytes = max_bytes
        self._now = now
        self._ring: deque[str] = deque()
        self._ring_bytes = 0
        self._path: Path | None = None
        self._file: int | None = None
        self._size = 0

    def redact_with(self, redactor: Callable[[str], str]) -> None:
        self._redact = redactor

    def redacted(self, text: str) -> str:
        return self._redact(text)

    def open(self, path: Path) -> None:
        """From now on lines also go to this file."""
        self._path = path
        self._reopen()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def write(self, source: str, line: str) -> None:
        stamp = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = f"{stamp} {source}| {self._redact(line)[:MAX_SHOWN]}\n"
        self._ring.append(text)
        self._ring_bytes += len(text)
        while len(self._ring) > RING_LINES or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())
        self._to_file(text.encode())

    def tail(self, lines: int) -> str:
        return "".join(list(self._ring)[-lines:])

    def _to_file(self, data: bytes) -> None:
        try:
            if self._size + len(data) > self._max_bytes:
                self._rotate()
            if self._file is not None:
                os.write(self._file, data)
                self._size += len(data)
        except OSError:
            pass  # the ring still has it

    def _rotate(self) -> None:
        if self._path is None:
            return
        self.close()
        for number in range(KEPT_FILES - 1, 0, -1):
            newer = self._path if number == 1 else self._numbered(number - 1)
            if newer.exists():
                newer.replace(self._numbered(number))
        self._reopen()

    def _numbered(self, number: int) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.{number}")

    def _reopen(self) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        try:
            self._file = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._file).st_size
        except OSError:
            self._file, self._size = None, 0
