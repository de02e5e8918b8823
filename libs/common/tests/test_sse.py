"""Reading server-sent events: what the api sends, and what the standard allows beyond it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from hatchery_common.sse import ServerEvent, event_data, follow_events, read_events

STREAM = """retry: 2000

: heartbeat

id: 7
event: text.delta
data: {"text": "a: b"}

event:status
data:{"at":
data:1}

data: "plain"

event: without data

data: [DONE]

id: 8
event: unfinished
data: {}"""
EVENTS = [
    ServerEvent("text.delta", {"text": "a: b"}, "7"),
    ServerEvent("status", {"at": 1}),
    ServerEvent("message", "plain"),
]


@pytest.mark.parametrize("mark", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_text_breaks_the_line(mark: str) -> None:
    written = b"event: final\ndata: " + event_data({"text": f"one{mark}two"}) + b"\n\n"
    [event] = read_events(written.decode().splitlines())
    assert event.data == {"text": f"one{mark}two"}


def test_half_a_character_becomes_a_question_mark() -> None:
    assert json.loads(event_data({"text": "a\ud83d"})) == {"text": "a?"}


def test_events_are_read_and_the_rest_is_left_out() -> None:
    assert list(read_events(STREAM.split("\n"))) == EVENTS


async def test_events_are_read_as_they_come() -> None:
    async def lines() -> AsyncGenerator[str]:
        for line in STREAM.split("\n"):
            yield line

    assert [one async for one in follow_events(lines())] == EVENTS


def test_data_that_is_no_json_is_an_error() -> None:
    with pytest.raises(json.JSONDecodeError):
        list(read_events(["event: x", "data: {", ""]))
