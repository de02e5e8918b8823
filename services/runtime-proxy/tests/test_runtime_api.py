"""The runtime API against the stand-in gateway."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hatchery_common.contracts.instances import RouteState
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, Socket
from proxy_stage import ANN, BOB, Proxy, read_events

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


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-oa-tenant-key": ANN},
        {"x-oa-tenant-key": ANN, "x-openagents-service-token": "guess"},
        {"x-oa-tenant-key": "*", "x-openagents-service-token": "guess"},
    ],
)
async def test_every_path_needs_the_service_token(proxy: Proxy, headers: dict[str, str]) -> None:
    for path in ("/v1/status", "/v1/devices", "/v1/sessions", "/v1/sessions/x/history"):
        answer = await proxy.runtime.get(path, headers=headers)
        body = answer.json()
        assert (answer.status_code, body["ok"], body["error_detail"]["code"]) == (401, False, "unauthorized")


async def test_a_tenants_token_opens_no_other_tenant(proxy: Proxy) -> None:
    mixed = {**proxy.headers(BOB), "x-oa-tenant-key": ANN}
    assert (await proxy.runtime.get("/v1/status", headers=mixed)).status_code == 401
    foreign = proxy.headers(BOB, **{"x-oa-instance-id": "ins_ann"})
    answer = await proxy.runtime.get("/v1/status", headers=foreign)
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (404, "instance_unknown")
    assert (await proxy.runtime.get("/v1/status", headers=proxy.headers(BOB))).status_code == 404


async def test_a_model_token_is_refused_here(proxy: Proxy) -> None:
    assert (await proxy.runtime.get("/v1/status", headers=proxy.bearer())).status_code == 401


async def test_unknown_paths_and_methods_answer_in_the_envelope(proxy: Proxy) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/v1/status", 405)):
        answer = await proxy.runtime.request(method, path, headers=proxy.headers())
        assert (answer.status_code, answer.json()["ok"]) == (status, False)


async def test_bad_queries_answer_in_the_envelope(proxy: Proxy) -> None:
    for path in ("/v1/sessions?limit=many", "/v1/sessions?limit=0", "/v1/sessions/a/b/history?limit=9999"):
        answer = await proxy.runtime.get(path, headers=proxy.headers())
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (400, "invalid_input")
    answer = await proxy.runtime.get("/v1/sessions/agent:main:odd%2Fkey/history", headers=proxy.headers())
    assert answer.json()["data"]["session_key"] == "agent:main:odd/key"


async def test_status_tells_gateway_version_and_why_there_is_no_backup(proxy: Proxy) -> None:
    data = (await proxy.runtime.get("/v1/status", headers=proxy.headers())).json()["data"]
    assert data["gateway"] == {"state": "ready", "version": "2026.9.6"}
    assert (data["instance_type"], data["last_backup"]) == ("standard", None)
    assert data["last_backup_reason"]


@pytest.mark.parametrize("state", [RouteState.STARTING, RouteState.STOPPING, RouteState.STOPPED])
async def test_only_a_running_instance_is_spoken_to(proxy: Proxy, state: RouteState) -> None:
    proxy.route(state=state)
    answer = await proxy.runtime.get("/v1/devices", headers=proxy.headers())
    detail = answer.json()["error_detail"]
    assert (answer.status_code, detail["code"], detail["state"]) == (503, "instance_not_running", state.value)
    status = await proxy.runtime.get("/v1/status", headers=proxy.headers())
    assert (status.status_code, status.json()["data"]["gateway"]["state"]) == (200, state.value)


async def test_a_gateway_that_is_gone_is_a_typed_error(proxy: Proxy) -> None:
    await proxy.machine.stop()
    answer = await proxy.runtime.get("/v1/devices", headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_unreachable")
    assert (await proxy.runtime.get("/v1/status", headers=proxy.headers())).json()["data"]["gateway"][
        "state"
    ] == "unreachable"


async def test_restart_goes_to_the_controller(proxy: Proxy) -> None:
    answer = await proxy.runtime.post("/v1/gateway/restart", headers=proxy.headers(), json={"reason": "try"})
    assert (answer.status_code, proxy.controllers.restarts) == (202, [("mch_ann", "try")])


async def test_devices_are_approved_and_rejected(proxy: Proxy) -> None:
    proxy.machine.seed_devices("r1", "r2")
    listed = (await proxy.runtime.get("/v1/devices", headers=proxy.headers())).json()["data"]
    assert [row["requestId"] for row in listed["pending"]] == ["r1", "r2"]
    assert "hush" not in json.dumps(listed), "a device's token left the runtime"
    for request_id, verb in (("r1", "approve"), ("r2", "reject")):
        answer = await proxy.runtime.post(f"/v1/devices/{request_id}/{verb}", headers=proxy.headers())
        assert (answer.status_code, answer.json()["data"]["requestId"]) == (200, request_id)
    answer = await proxy.runtime.post("/v1/devices/r1/approve", headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (404, "not_found")


async def test_senders_of_a_channel_are_approved(proxy: Proxy) -> None:
    proxy.machine.seed_pairings({"requestId": "p1", "channel": "telegram", "accountId": "default", "senderId": "7"})
    listed = (await proxy.runtime.get("/v1/pairing/telegram", headers=proxy.headers())).json()["data"]
    assert [row["senderId"] for row in listed["requests"]] == ["7"]
    assert (await proxy.runtime.get("/v1/pairing/slack", headers=proxy.headers())).json()["data"]["requests"] == []
    for expected in (200, 404):
        path = "/v1/pairing/telegram/approve"
        assert (
            await proxy.runtime.post(path, headers=proxy.headers(), json={"requestId": "p1"})
        ).status_code == expected


async def test_tools_are_invoked_under_the_gateways_policy(proxy: Proxy) -> None:
    async def invoke(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = await proxy.runtime.post("/v1/tools/invoke", headers=proxy.headers(), json=body)
        return answer.status_code, answer.json()

    status, body = await invoke({"tool": "sessions_list", "args": {}})
    assert (status, body["data"]["details"]["count"]) == (200, 0)
    status, body = await invoke({"tool": "exec", "args": {"command": "id"}})
    assert (status, body["error_detail"]["code"]) == (404, "tool_not_available")
    status, body = await invoke({"tool": "sessions_history", "args": {}})
    assert (status, body["error_detail"]["code"]) == (400, "tool_rejected")
    status, body = await invoke({"tool": "sessions_list", "dryRun": True})
    assert body["data"]["dry_run"] is True
    for bad in ({}, {"tool": 3}, {"tool": "x", "surprise": 1}, {"tool": "x", "headers": {"authorization": "y"}}):
        assert (await invoke(bad))[0] == 400


async def test_bad_bodies_are_typed(proxy: Proxy) -> None:
    path = "/v1/sessions/s/send"
    for content, status, code in (
        (b"{", 400, "invalid_input"),
        (b"[]", 400, "invalid_input"),
        (b'{"message":"","idempotencyKey":"run_1234"}', 400, "invalid_input"),
        (b'{"message":"x"}', 400, "invalid_input"),
        (b'{"message":"' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
    ):
        answer = await proxy.runtime.post(path, headers=proxy.headers(), content=content)
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (status, code)


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
