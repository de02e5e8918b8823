"""Turns and responses of the runtime API against the stand-in gateway, and against gateways that are silent, broken or mad."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, Socket
from proxy_stage import Proxy, read_events

KEY = "run_12345678"
SSE = {"accept": "text/event-stream"}


async def send(
    proxy: Proxy, message: str, key: str, session: str = "agent:main:hatch:one"
) -> list[tuple[str, dict[str, Any]]]:
    body = {"message": message, "idempotencyKey": key}
    path = f"/v1/sessions/{session}/send"
    async with proxy.runtime.stream("POST", path, json=body, headers=proxy.headers(**SSE)) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return await read_events(answer.aiter_lines())


async def test_a_turn_streams(proxy: Proxy) -> None:
    proxy.model.delay = 0.05
    events = await send(proxy, "hello", KEY)
    names = [name for name, _ in events]
    assert names[-1] == "final"
    assert names.index("accepted") < names.index("delta") < names.index("final")
    assert ("accepted", {"run_id": KEY, "replayed": False}) in events
    assert "".join(data["text"] for name, data in events if name == "delta") == proxy.model.reply
    assert events[-1][1]["text"] == proxy.model.reply
    assert events[-1][1]["usage"]["output_tokens"] == 7
    history = (await proxy.runtime.get("/v1/sessions/agent:main:hatch:one/history", headers=proxy.headers())).json()[
        "data"
    ]
    assert [(row["role"], row["text"]) for row in history["messages"]] == [
        ("user", "hello"),
        ("assistant", proxy.model.reply),
    ]
    assert history["messages"][1]["run_id"] == KEY
    sessions = (await proxy.runtime.get("/v1/sessions", headers=proxy.headers())).json()["data"]["sessions"]
    assert [row["key"] for row in sessions] == ["agent:main:hatch:one"]


async def test_without_a_stream_the_final_answer_comes(proxy: Proxy) -> None:
    body = {"message": "hello", "idempotencyKey": KEY}
    answer = await proxy.runtime.post("/v1/sessions/s1/send", headers=proxy.headers(), json=body)
    assert (answer.status_code, answer.json()["data"]["text"]) == (200, proxy.model.reply)
    again = await proxy.runtime.post("/v1/sessions/s1/send", headers=proxy.headers(), json=body)
    assert again.json() == answer.json()
    assert len(proxy.model.requests) == 1


async def test_a_silent_model_gets_a_status_within_a_second(proxy: Proxy) -> None:
    proxy.model.delay = 0.6
    events = await send(proxy, "slow", KEY)
    assert ("status", {"phase": "waiting"}) in events
    assert events[-1][0] == "final"


async def test_a_stalled_turn_ends_with_a_named_error(proxy: Proxy) -> None:
    proxy.model.delay = 3
    events = await send(proxy, "stall", KEY)
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "stalled")


async def test_a_failing_model_ends_with_a_named_error(proxy: Proxy) -> None:
    proxy.model.status = 500
    events = await send(proxy, "fail", KEY)
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "gateway_run_failed")
    again = await send(proxy, "fail", KEY)
    assert again[-1][1]["code"] == "gateway_run_failed"


async def test_hanging_up_does_not_cancel_the_turn(proxy: Proxy) -> None:
    proxy.model.delay = 0.3
    body, path = {"message": "go on", "idempotencyKey": KEY}, "/v1/sessions/s1/send"
    async with proxy.runtime.stream("POST", path, json=body, headers=proxy.headers(**SSE)) as answer:
        async for line in answer.aiter_lines():
            if line == "event: delta":
                break
    events = await send(proxy, "go on", KEY, "s1")
    assert ("accepted", {"run_id": KEY, "replayed": True}) in events
    assert (events[-1][0], events[-1][1]["text"]) == ("final", proxy.model.reply)
    assert len(proxy.model.requests) == 1


async def test_a_lost_gateway_is_named(proxy: Proxy) -> None:
    proxy.model.delay = 0.5
    turn = asyncio.create_task(send(proxy, "hello", KEY))
    await asyncio.sleep(0.8)
    await proxy.machine._server.stop()
    events = await turn
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "gateway_connection_lost")


async def test_a_turn_from_before_a_restart_is_interrupted(proxy: Proxy) -> None:
    transcripts = proxy.machine.gateway.transcripts
    key = f"{KEY}:user"
    transcripts.append("s1", {"role": "user", "content": "q", "idempotencyKey": key}, {"recordTimestampMs": 1})
    events = await send(proxy, "q", KEY, "s1")
    assert [name for name, _ in events] == ["accepted", "error"]
    assert events[-1][1]["code"] == "interrupted"
    assert not proxy.model.requests


async def test_a_long_turn_from_before_a_restart_is_interrupted_too(proxy: Proxy) -> None:
    """Its question lies before the part of the history that is read."""
    transcripts, marks = proxy.machine.gateway.transcripts, {"recordTimestampMs": 1}
    transcripts.append("s1", {"role": "user", "content": "q", "idempotencyKey": f"{KEY}:user"}, marks)
    for _ in range(75):
        transcripts.append("s1", {"role": "assistant", "content": "", "stopReason": "toolUse"}, {**marks, "runId": KEY})
        transcripts.append("s1", {"role": "toolResult", "content": "42"}, {**marks, "runId": KEY})
    events = await send(proxy, "q", KEY, "s1")
    assert [name for name, _ in events] == ["accepted", "error"]
    assert events[-1][1]["code"] == "interrupted"
    assert not proxy.model.requests, "its tools would run twice"


async def test_abort_ends_a_turn(proxy: Proxy) -> None:
    proxy.model.delay = 1
    turn = asyncio.create_task(send(proxy, "hello", KEY, "s1"))
    await asyncio.sleep(0.5)
    answer = await proxy.runtime.post("/v1/sessions/s1/abort", headers=proxy.headers(), json={"runId": KEY})
    assert answer.json()["data"] == {"aborted": True, "run_ids": [KEY]}
    assert (await turn)[-1][1]["code"] == "aborted"


async def test_responses_pass_through(proxy: Proxy) -> None:
    proxy.model.delay = 0.2
    body = {"model": "openclaw", "input": "hi", "stream": True}
    async with proxy.runtime.stream("POST", "/v1/responses", json=body, headers=proxy.headers()) as answer:
        names = [name for name, _ in await read_events(answer.aiter_lines())]
    assert names[0] in ("status", "response.created")
    assert names[-1] == "response.completed"
    whole = await proxy.runtime.post("/v1/responses", json={**body, "stream": False}, headers=proxy.headers())
    assert whole.json()["data"]["status"] == "completed"
    refused = await proxy.runtime.post("/v1/responses", json={**body, "model": "gpt"}, headers=proxy.headers())
    assert (refused.status_code, refused.json()["error_detail"]["code"]) == (400, "invalid_input")


class MuteGateway:
    """Accepts connections and requests and sends nothing, or a stream that breaks off."""

    def __init__(self, chunks: tuple[bytes, ...] = (), *, hang: bool = True) -> None:
        self.chunks, self.hang = chunks, hang
        self.server = Server(self.handle, self.converse)

    async def handle(self, request: Request) -> Response:
        if self.hang:
            await asyncio.sleep(30)
        return Response(200, self.stream(), {"content-type": "text/event-stream"})

    async def stream(self):
        for chunk in self.chunks:
            yield chunk

    async def converse(self, request: Request, socket: Socket) -> None:
        await asyncio.sleep(30)


async def test_silence_becomes_a_named_error_after_a_status(proxy: Proxy) -> None:
    mute = MuteGateway()
    proxy.route(endpoint=f"http://127.0.0.1:{await mute.server.start('127.0.0.1', 0)}")
    began = time.monotonic()
    body = {"model": "openclaw", "input": "hi", "stream": True}
    async with proxy.runtime.stream("POST", "/v1/responses", json=body, headers=proxy.headers()) as answer:
        first_line = await anext(answer.aiter_lines())
        assert (first_line, time.monotonic() - began < 1.0) == ("event: status", True)
    async with proxy.runtime.stream("POST", "/v1/responses", json=body, headers=proxy.headers()) as answer:
        events = await read_events(answer.aiter_lines())
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "first_byte_timeout")
    turn = await send(proxy, "hi", KEY)
    assert (turn[0][0], turn[-1][0]) == ("status", "error")
    assert turn[-1][1]["code"] in ("first_byte_timeout", "gateway_timeout")
    await mute.server.stop()


async def test_a_stream_that_breaks_off_says_so(proxy: Proxy) -> None:
    broken = MuteGateway((b"event: response.created\ndata: {}\n\n",), hang=False)
    proxy.route(endpoint=f"http://127.0.0.1:{await broken.server.start('127.0.0.1', 0)}")
    body = {"model": "openclaw", "input": "hi", "stream": True}
    async with proxy.runtime.stream("POST", "/v1/responses", json=body, headers=proxy.headers()) as answer:
        lines = [line async for line in answer.aiter_lines()]
    assert lines[0] == "event: response.created"
    assert "event: error" in lines
    assert "gateway_stream_ended" in lines[-2]
    await broken.server.stop()


@pytest.mark.parametrize(
    "said",
    ["not json", "[]", '{"event":"connect.challenge"}', '{"event":"connect.challenge","payload":[]}', "[" * 100_000],
)
async def test_a_machine_that_talks_nonsense_is_only_unreachable(proxy: Proxy, said: str) -> None:
    class Nonsense(MuteGateway):
        async def handle(self, request: Request) -> Response:
            return Response(200, said.encode())

        async def converse(self, request: Request, socket: Socket) -> None:
            socket._protocol.send_text(said.encode())
            socket._flush()
            await asyncio.sleep(0.3)

    liar = Nonsense()
    proxy.route(endpoint=f"http://127.0.0.1:{await liar.server.start('127.0.0.1', 0)}")
    answer = await proxy.runtime.get("/v1/devices", headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_unreachable")
    answer = await proxy.runtime.post("/v1/tools/invoke", headers=proxy.headers(), json={"tool": "x"})
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_error")
    await liar.server.stop()
