"""Server-sent events: their data as it is written, and as it is read, for readers that wait and for those that do not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

# Ends of lines to many readers, though not to the standard: httpx's iter_lines cuts there, and half an event is lost.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}

_END = ["[DONE]"]


def event_data(data: Any) -> bytes:
    """JSON on what every reader takes for one line; half a character, which gateways may cut off, becomes a question mark."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode(errors="replace")


@dataclass(frozen=True)
class ServerEvent:
    """One server-sent event; `data` is its JSON. Its id is what `Last-Event-ID` resumes after."""

    event: str
    data: Any
    id: str | None = None


class EventReader:
    """Takes a stream's lines one by one, without their ends; comments, events without data and OpenAI's end mark give nothing."""

    def __init__(self) -> None:
        self._event = "message"
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, line: str) -> ServerEvent | None:
        """The event that this line completes; raises ValueError for data that is no JSON."""
        if line:
            self._take(line)
            return None
        event, data, identifier = self._event, self._data, self._id
        self._event, self._data, self._id = "message", [], None
        return ServerEvent(event, json.loads("\n".join(data)), identifier) if data and data != _END else None

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value


def read_events(lines: Iterable[str]) -> Generator[ServerEvent]:
    """The events of these lines; an unfinished one at the end does not count."""
    reader = EventReader()
    for line in lines:
        found = reader.feed(line)
        if found is not None:
            yield found


async def follow_events(lines: AsyncIterable[str]) -> AsyncGenerator[ServerEvent]:
    """The events of these lines as they come."""
    reader = EventReader()
    async for line in lines:
        found = reader.feed(line)
        if found is not None:
            yield found
