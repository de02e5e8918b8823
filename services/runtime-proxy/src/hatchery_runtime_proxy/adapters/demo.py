"""The built-in demo model as a provider: offline, free, streamed at a reading pace."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from hatchery_common.sse import event_data

from hatchery_runtime_proxy.domain import demo
from hatchery_runtime_proxy.ports import Completion

_EVENT_STREAM = "text/event-stream; charset=utf-8"


class DemoModel:
    """Answers every completion from its own words."""

    name = "demo"
    models = ("demo",)

    def __init__(self, delay_s: float = 0.015) -> None:
        self._delay = delay_s

    @asynccontextmanager
    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Completion]:
        """The answer, in the model name that was asked for (OpenClaw announces a change of the model otherwise)."""
        messages = _messages(body)
        text = demo.reply(messages)
        counts = demo.tokens(messages, text)
        usage = {"prompt_tokens": counts.input_tokens, "completion_tokens": counts.output_tokens}
        usage["total_tokens"] = counts.input_tokens + counts.output_tokens
        head = {"id": "chatcmpl-demo", "created": int(time.time()), "model": str(body.get("model"))}
        if body.get("stream"):
            yield Completion(200, _EVENT_STREAM, self._stream(head, text, usage))
        else:
            yield Completion(200, "application/json", _whole(head, text, usage))

    async def _stream(self, head: dict[str, Any], text: str, usage: dict[str, int]) -> AsyncIterator[bytes]:
        chunk = {**head, "object": "chat.completion.chunk"}
        yield _data({**chunk, "choices": [_choice({"role": "assistant", "content": ""})]})
        for piece in demo.pieces(text):
            yield _data({**chunk, "choices": [_choice({"content": piece})]})
            await asyncio.sleep(self._delay)
        yield _data({**chunk, "choices": [_choice({}, "stop")]})
        yield _data({**chunk, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


async def _whole(head: dict[str, Any], text: str, usage: dict[str, int]) -> AsyncIterator[bytes]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    yield json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % event_data(value)


def _messages(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    given = body.get("messages")
    rows = cast("list[Any]", given) if isinstance(given, list) else []
    return [cast("dict[str, Any]", row) for row in rows if isinstance(row, dict)]
