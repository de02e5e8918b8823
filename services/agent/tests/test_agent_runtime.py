"""The client of the runtime API: what it sends, and what it makes of every kind of answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from hatchery_agent.adapters.runtime import ProxyTurns
from hatchery_agent.domain.decisions import Usage
from hatchery_agent.domain.recovery import History, PastMessage
from hatchery_agent.ports import (
    Accepted,
    Delta,
    Final,
    GatewayNotReady,
    Progress,
    Session,
    Steered,
    TurnError,
    TurnEvent,
)
from hatchery_common.secrets import runtime_service_token
from hatchery_common.sse import event_data

KEY = b"k" * 32
SESSION = Session("ta", "ins_1", "agent:main:hatch:thd_1")


def sse(*events: tuple[str, object]) -> bytes:
    return b": hello\n\n" + b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in events)


async def turn(respond: Callable[[httpx.Request], httpx.Response]) -> list[TurnEvent]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        proxy = ProxyTurns(client, "http://proxy", KEY)
        async with proxy.send(SESSION, "Hi", "run_1") as events:
            return [event async for event in events]


def answering(*events: tuple[str, object]) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(200, content=sse(*events))


async def test_a_turn_is_sent_with_its_key_and_the_tenants_token():
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=sse(("final", {"text": "ok"})))

    await turn(respond)
    request = seen[0]
    assert request.url.raw_path == b"/v1/sessions/agent%3Amain%3Ahatch%3Athd_1/send"
    assert json.loads(request.content) == {"message": "Hi", "idempotencyKey": "run_1"}
    assert request.headers["x-openagents-service-token"] == runtime_service_token(KEY, "ta")
    assert (request.headers["x-oa-tenant-key"], request.headers["x-oa-instance-id"]) == ("ta", "ins_1")


async def test_every_event_is_read_and_unknown_ones_are_skipped():
    events = await turn(
        answering(
            ("status", {"phase": "thinking"}),
            ("accepted", {"run_id": "run_1", "replayed": False}),
            ("novelty", {"x": 1}),
            ("delta", {"text": "Hé"}),
            ("final", {"text": "Hé!", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}),
        )
    )
    assert events == [Progress("thinking"), Accepted(), Delta("Hé"), Final("Hé!", Usage(5, 2))]


async def test_no_character_of_a_text_breaks_its_event():
    text = "one\u2028two\u2029three\x85four"
    content = b"event: final\ndata: " + event_data({"text": text}) + b"\n\n"
    assert await turn(lambda request: httpx.Response(200, content=content)) == [Final(text)]


async def test_an_event_that_is_no_json_is_a_broken_stream_and_no_answer():
    content = b'event: accepted\ndata: {}\n\nevent: final\ndata: {"text": "one\n\n'
    assert await turn(lambda request: httpx.Response(200, content=content)) == [Accepted()]


async def test_an_end_without_a_final_is_just_an_end():
    assert await turn(answering(("accepted", {}), ("delta", {"text": "He"}))) == [Accepted(), Delta("He")]


async def test_a_gateway_lost_in_the_middle_is_a_broken_stream_and_other_errors_are_errors():
    lost = await turn(answering(("accepted", {}), ("error", {"code": "gateway_connection_lost", "message": "gone"})))
    assert lost == [Accepted()]
    failed = await turn(answering(("accepted", {}), ("error", {"code": "interrupted", "message": "restarted"})))
    assert failed == [Accepted(), TurnError("interrupted", "restarted")]


@pytest.mark.parametrize(
    ("code", "state"),
    [("gateway_unreachable", "unreachable"), ("gateway_unavailable", "unreachable"), ("gateway_not_ready", "starting")],
)
async def test_an_error_before_acceptance_means_not_ready(code: str, state: str):
    with pytest.raises(GatewayNotReady) as caught:
        await turn(answering(("status", {"phase": "connecting"}), ("error", {"code": code, "message": "m"})))
    assert caught.value.state == state


@pytest.mark.parametrize(
    ("status", "body", "state", "refused"),
    [
        (503, {"ok": False, "error": "e", "error_detail": {"code": "x", "state": "stopped"}}, "stopped", False),
        (409, {"ok": False, "error": "e", "error_detail": {"code": "instance_not_running"}}, "not running", False),
        (503, None, "unreachable", False),
        (404, {"ok": False, "error": "no such instance"}, "unknown", False),
        (401, {"ok": False, "error": "token"}, "not running", True),
    ],
)
async def test_a_refused_request_tells_the_state(status: int, body: object, state: str, refused: bool):
    content = b"<html>" if body is None else json.dumps(body).encode()
    with pytest.raises(GatewayNotReady) as caught:
        await turn(lambda request: httpx.Response(status, content=content))
    assert (caught.value.state, caught.value.refused) == (state, refused)


async def test_a_proxy_that_does_not_answer_is_unreachable():
    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(GatewayNotReady) as caught:
        await turn(respond)
    assert caught.value.state == "unreachable"


async def test_a_final_without_text_that_joined_another_turn_is_steered():
    events = await turn(answering(("accepted", {}), ("final", {"text": "", "usage": None, "steered_into": "run_0"})))
    assert events == [Accepted(), Steered()]


async def test_a_turn_is_aborted_by_its_key():
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200 if len(seen) == 1 else 503, json={"ok": True, "data": {"aborted": False}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        proxy = ProxyTurns(client, "http://proxy", KEY)
        await proxy.abort(SESSION, "run_1")
        with pytest.raises(GatewayNotReady):
            await proxy.abort(SESSION, "run_1")
    assert seen[0].url.path.endswith("/v1/sessions/agent:main:hatch:thd_1/abort")
    assert json.loads(seen[0].content) == {"runId": "run_1"}
    assert seen[0].headers["x-openagents-service-token"] == runtime_service_token(KEY, "ta")


async def test_history_is_read_from_the_envelope():
    row = {"role": "user", "text": "Hi", "idempotency_key": "run_1:user", "stop_reason": None, "usage": None}

    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path.endswith("/history")
        return httpx.Response(200, json={"ok": True, "data": {"messages": [row], "active": True}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        history = await ProxyTurns(client, "http://proxy", KEY).history(SESSION)
    assert history == History([PastMessage("user", "Hi", "run_1:user")], active=True)
