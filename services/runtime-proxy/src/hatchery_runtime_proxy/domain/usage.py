"""Reads token counts out of an OpenAI-compatible answer while its bytes pass by unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

_MAX_LINE = 1024 * 1024


@dataclass(frozen=True)
class Tokens:
    """A provider's own counts; `input_tokens` includes what came from its cache, as OpenAI counts."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class AnswerScanner:
    """Takes the chunks of one answer, streamed or whole, wherever they are cut."""

    def __init__(self, *, streamed: bool) -> None:
        self._streamed = streamed
        self._buffer = bytearray()
        self.tokens: Tokens | None = None
        self.unreadable = False  # the provider told its counts in a way that we cannot read
        self.complete = False
        self.error: str | None = None

    def feed(self, chunk: bytes) -> None:
        """More bytes of the answer."""
        self._buffer += chunk
        if not self._streamed:
            if len(self._buffer) > 16 * _MAX_LINE:
                self._buffer.clear()
            return
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest if len(rest) <= _MAX_LINE else b"")
        for line in lines:
            self._line(line.strip())

    def end(self) -> None:
        """The answer's bytes are over."""
        if self._streamed:
            self._line(bytes(self._buffer).strip())
        else:
            self._object(bytes(self._buffer))
            self.complete = self.error is None and bool(self._buffer)
        self._buffer.clear()

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.complete = True
        elif b'"usage"' in data or b'"finish_reason"' in data or b'"error"' in data:
            self._object(data)

    def _object(self, data: bytes) -> None:
        try:
            value = json.loads(data)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        answer = cast("dict[str, Any]", value)
        if answer.get("error"):
            self.error = str(_mapping(answer["error"]).get("message", answer["error"]))[:300]
        if answer.get("usage"):
            self.tokens = read_tokens(_mapping(answer["usage"]))
            self.unreadable = self.tokens is None
        choices = answer.get("choices")
        if isinstance(choices, list) and any(_mapping(c).get("finish_reason") for c in cast("list[Any]", choices)):
            self.complete = True


def read_tokens(usage: Mapping[str, Any]) -> Tokens | None:
    """Counts of a chat completion's `usage`; None unless both are there, since a 0 that is a guess would be an answer for free.

    Only these names: where others stand for input and output (`input_tokens`), some providers leave out what came from the cache.
    """
    given, taken = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if given is None or taken is None:
        return None
    details = _mapping(usage.get("prompt_tokens_details"))
    return Tokens(given, taken, _count(details.get("cached_tokens")) or 0)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
