"""The model gateway: tokens, the demo model, pass-through, and the order of usage events."""

from __future__ import annotations

import asyncio
import json
import time

import jwt
import pytest
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.contracts.routes import RouteState
from hatchery_common.secrets import MODEL_AUDIENCE
from proxy_stage import SEED, FakeMachine, Proxy
from structlog.testing import capture_logs

PATH = "/llm/v1/chat/completions"
HELLO = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


def forged(**changes: object) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    claims = {"sub": "mch_ann", "aud": MODEL_AUDIENCE, "iat": 1, **changes}
    typ = claims.pop("typ", "model+jwt")
    key = Ed25519PrivateKey.from_private_bytes(claims.pop("seed", SEED))
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": typ})


def unsigned() -> str:
    return jwt.encode(
        {"sub": "mch_ann", "aud": MODEL_AUDIENCE, "iat": 1}, None, algorithm="none", headers={"typ": "model+jwt"}
    )


@pytest.mark.parametrize(
    "token",
    [
        "-",
        "nonsense",
        forged(seed=b"x" * 32),
        forged(aud="other"),
        forged(typ="JWT"),
        forged(exp=5),
        forged(sub="mch_bob"),
        unsigned(),
    ],
)
async def test_wrong_tokens_are_refused(proxy: Proxy, token: str) -> None:
    for headers in ({"authorization": f"Bearer {token}"}, {"authorization": token}, {}):
        answer = await proxy.llm.post(PATH, json=HELLO, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert not proxy.usage.events


async def test_a_runtime_service_token_is_refused_here(proxy: Proxy) -> None:
    assert (await proxy.llm.post(PATH, json=HELLO, headers=proxy.headers())).status_code == 401


@pytest.mark.parametrize("state", list(RouteState))
async def test_a_token_holds_while_the_machine_runs(proxy: Proxy, state: RouteState) -> None:
    proxy.route(state=state)
    answer = await proxy.llm.post(PATH, json=HELLO, headers=proxy.bearer())
    assert answer.status_code == (200 if state in (RouteState.STARTING, RouteState.RUNNING) else 401)


async def test_a_proxy_that_has_not_read_its_routes_asks_for_patience(proxy: Proxy) -> None:
    proxy.route(state=RouteState.STOPPED)
    proxy.table.refreshed_at = None
    answer = await proxy.llm.post(PATH, json=HELLO, headers=proxy.bearer())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dependency_unavailable")


async def test_the_demo_model_streams_and_is_recorded(proxy: Proxy) -> None:
    async with proxy.llm.stream("POST", PATH, json=HELLO, headers=proxy.bearer()) as answer:
        assert isinstance(proxy.usage.events[0], UsageOpened), "the call left before it was opened"
        chunks = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert "demo model" in text
    assert "“hello”" in text
    assert len(chunks) > 5
    assert {chunk["model"] for chunk in chunks} == {"demo"}
    opened, recorded = proxy.usage.events
    assert isinstance(recorded, UsageRecorded)
    assert (recorded.call_id, recorded.outcome) == (opened.call_id, UsageOutcome.COMPLETED)
    assert (recorded.tenant, recorded.instance_id, recorded.machine_id) == ("tann", "ins_ann", "mch_ann")
    assert (recorded.provider, recorded.usage_known) == ("demo", True)
    assert recorded.output_tokens > 0
    assert recorded.first_byte_ms is not None


async def test_the_demo_model_answers_whole(proxy: Proxy) -> None:
    answer = await proxy.llm.post(PATH, json={**HELLO, "stream": False}, headers=proxy.bearer())
    assert "“hello”" in answer.json()["choices"][0]["message"]["content"]
    assert proxy.usage.events[-1].outcome is UsageOutcome.COMPLETED


async def test_models_are_listed(proxy: Proxy) -> None:
    rows = (await proxy.llm.get("/llm/v1/models", headers=proxy.bearer())).json()["data"]
    assert [row["id"] for row in rows] == ["demo", "default", "stub-large"]


async def test_a_provider_is_passed_through_as_bytes(proxy: Proxy) -> None:
    proxy.model.delay = 0.3
    began, times = time.monotonic(), []
    async with proxy.llm.stream("POST", PATH, json={**HELLO, "model": "default"}, headers=proxy.bearer()) as answer:
        raw = b""
        async for chunk in answer.aiter_raw():
            times.append(time.monotonic() - began)
            raw += chunk
    assert times[0] < 0.6 < times[-1], "the answer was held back"
    assert raw.endswith(b"data: [DONE]\n\n")
    asked = proxy.model.requests[-1]
    assert (asked["model"], asked["stream_options"]) == ("stub-large", {"include_usage": True})
    assert proxy.model.headers[-1]["authorization"] == "Bearer sk-provider"
    recorded = proxy.usage.events[-1]
    assert (recorded.outcome, recorded.input_tokens, recorded.output_tokens) == (UsageOutcome.COMPLETED, 100, 7)
    assert recorded.model == "stub-large", "what `default` stands for is what has a price"


async def test_a_providers_refusal_is_passed_on_and_recorded(proxy: Proxy) -> None:
    proxy.model.status = 429
    answer = await proxy.llm.post(PATH, json={**HELLO, "model": "default"}, headers=proxy.bearer())
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "stub_error")
    recorded = proxy.usage.events[-1]
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.FAILED, True)


async def test_a_provider_that_is_down_is_recorded_as_failed(proxy: Proxy) -> None:
    await proxy.model.__aexit__()
    answer = await proxy.llm.post(PATH, json={**HELLO, "model": "default"}, headers=proxy.bearer())
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_unavailable")
    assert [type(event) for event in proxy.usage.events] == [UsageOpened, UsageRecorded]
    assert proxy.usage.events[-1].outcome is UsageOutcome.FAILED


async def test_a_machine_that_hangs_up_is_still_billed(proxy: Proxy) -> None:
    proxy.model.delay = 0.2
    async with proxy.llm.stream("POST", PATH, json={**HELLO, "model": "default"}, headers=proxy.bearer()) as answer:
        await anext(answer.aiter_raw())
    async with asyncio.timeout(5):
        while len(proxy.usage.events) < 2:  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.02)
    assert (proxy.usage.events[-1].input_tokens, proxy.usage.events[-1].usage_known) == (100, True)


async def test_no_call_leaves_when_it_cannot_be_metered(proxy: Proxy) -> None:
    proxy.usage.down = True
    answer = await proxy.llm.post(PATH, json={**HELLO, "model": "default"}, headers=proxy.bearer())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dependency_unavailable")
    assert not proxy.model.requests


async def test_bad_bodies_cost_nothing(proxy: Proxy) -> None:
    for content, status in ((b"{", 400), (b"[]", 400), (b"{}", 400), (b'{"model":"demo"}', 400), (b" " * 70_000, 413)):
        answer = await proxy.llm.post(PATH, content=content, headers=proxy.bearer())
        assert (answer.status_code, "error" in answer.json()) == (status, True)
    assert not proxy.usage.events


async def test_the_gateway_speaks_with_the_demo_model_through_us(proxy: Proxy, tmp_path) -> None:
    """The whole circle: runtime API → gateway → model gateway → demo model, twice in one session."""
    token = proxy.bearer("mch_circle")["authorization"].removeprefix("Bearer ")
    machine = FakeMachine(
        "mch_circle", tmp_path / "circle", f"http://127.0.0.1:{proxy.llm.base_url.port}/llm/v1", token
    )
    await machine.start()
    proxy.route("ins_circle", machine_id="mch_circle", endpoint=machine.endpoint, name="circle")
    headers = proxy.headers(**{"x-oa-instance-id": "ins_circle"})
    texts = []
    for number, message in enumerate(("my name is Ada", "what is my name")):
        body = {"message": message, "idempotencyKey": f"run_circle_{number}"}
        answer = await proxy.runtime.post("/v1/sessions/s/send", json=body, headers=headers)
        texts.append(answer.json()["data"]["text"])
    await machine.stop()
    assert "“my name is Ada”" in texts[0]
    assert "message 2 of our conversation; the one before was: “my name is Ada”" in texts[1]
    assert [event.outcome for event in proxy.usage.events if isinstance(event, UsageRecorded)] == [
        UsageOutcome.COMPLETED
    ] * 2


async def test_what_goes_into_events_is_a_models_name(proxy: Proxy) -> None:
    for change in ({"model": "say this\nto the log"}, {"model": "m" * 201}, {"model": ""}, {"stream": "false"}):
        answer = await proxy.llm.post(PATH, json={**HELLO, **change}, headers=proxy.bearer())
        assert answer.status_code == 400
    not_json = b'{"model": "default", "messages": [], "temperature": NaN}'
    assert (await proxy.llm.post(PATH, content=not_json, headers=proxy.bearer())).status_code == 400
    assert not proxy.usage.events


@pytest.mark.parametrize("model", ["demo", "default"])
async def test_half_a_character_hurts_nobody(proxy: Proxy, model: str) -> None:
    said = {**HELLO, "model": model, "messages": [{"role": "user", "content": "cut \ud83d"}]}
    answer = await proxy.llm.post(PATH, content=json.dumps(said), headers=proxy.bearer())
    assert answer.text.endswith("data: [DONE]\n\n")
    assert proxy.usage.events[-1].outcome is UsageOutcome.COMPLETED


async def test_a_client_that_leaves_before_its_request_is_whole_is_no_fault(proxy: Proxy) -> None:
    url, token = proxy.llm.base_url, proxy.bearer()["authorization"]
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\ncontent-length: 500\r\n\r\n{{"
        writer.write(head.encode())
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.2)
    assert not logs
