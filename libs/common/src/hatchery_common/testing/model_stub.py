"""A tiny OpenAI-compatible model server for tests: streams a scripted answer and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, json_response


class ModelStub:
    """Answers every chat completion by `reply` in `chunks` pieces, `delay` seconds apart; `status` other than 200 refuses."""

    def __init__(self, reply: str = "Hello from the stub model.", *, chunks: int = 4, delay: float = 0.0) -> None:
        self.reply, self.chunks, self.delay, self.status = reply, chunks, delay, 200
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0
        self._server = Server(self._handle)

    @property
    def base_url(self) -> str:
        """What a provider's base URL should be set to."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self.port = await self._server.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _handle(self, request: Request) -> Response:
        if not request.path.endswith("/chat/completions"):
            return json_response(404, {"error": {"message": "unknown path", "type": "invalid_request_error"}})
        self.requests.append(request.json())
        self.headers.append(request.headers)
        if self.status != 200:
            return json_response(self.status, {"error": {"message": "the stub refuses", "type": "stub_error"}})
        return Response(200, self._stream(), {"content-type": "text/event-stream"})

    async def _stream(self) -> AsyncIterator[bytes]:
        words = self.reply
        size = max(1, -(-len(words) // self.chunks))
        for start in range(0, len(words), size):
            yield _line({"index": 0, "delta": {"role": "assistant", "content": words[start : start + size]}})
            await asyncio.sleep(self.delay)
        yield _line({"index": 0, "delta": {}, "finish_reason": "stop"})
        yield _data({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}})
        yield b"data: [DONE]\n\n"


def _line(choice: dict[str, Any]) -> bytes:
    return _data({"choices": [choice]})


def _data(value: dict[str, Any]) -> bytes:
    chunk = {"id": "chatcmpl-stub", "object": "chat.completion.chunk", "created": 1, "model": "stub", **value}
    return f"data: {json.dumps(chunk)}\n\n".encode()
