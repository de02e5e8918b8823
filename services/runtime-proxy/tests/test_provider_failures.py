"""What the model gateway makes of a provider that refuses, fails, or is not there: for the machine, the operator, the bill."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import httpx
import pytest
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.ids import new_id
from hatchery_common.log import get_logger
from hatchery_common.secrets import public_key
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, json_response
from hatchery_runtime_proxy.adapters.demo import DemoModel
from hatchery_runtime_proxy.adapters.openai import OpenAIProvider
from hatchery_runtime_proxy.domain.verdicts import Verdict, costs_nothing, judge
from hatchery_runtime_proxy.handlers.models import ModelCalls
from hatchery_runtime_proxy.routes.models import ModelTools, model_gateway
from proxy_stage import SEED, Proxy, RecordedUsage
from structlog.testing import capture_logs

PATH = "/llm/v1/chat/completions"
ASKED = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
# OpenClaw 2026.9.6 takes its key for bad when an error's text says any of these (COMMON_AUTH_ERROR_PATTERNS).
READ_AS_A_BAD_KEY = re.compile(
    r"api[_ ]?key|invalid token|authenticat|unauthorized|forbidden|access denied|permission|expired|\b401\b|\b403\b",
    re.I,
)


class ScriptedProvider:
    """Answers every request with the one response it was given, or not at all."""

    def __init__(self) -> None:
        self.response: Callable[[], Response] = lambda: json_response(200, {})
        self.hang = False
        self.requests = 0
        self._server = Server(self._handle)
        self.url = ""

    async def start(self) -> None:
        self.url = f"http://127.0.0.1:{await self._server.start('127.0.0.1', 0)}/v1"

    async def stop(self) -> None:
        await self._server.stop()

    def answers(self, status: int, **headers: str) -> None:
        body = {"error": {"message": "Incorrect API key provided: sk-oper***ator", "code": "scripted"}}

        def made() -> Response:
            answer = json_response(status, body)
            answer.headers.update(headers)
            return answer

        self.response = made

    async def _handle(self, request: Request) -> Response:
        self.requests += 1
        if self.hang:
            await asyncio.sleep(30)
        return self.response()


@dataclass
class Gate:
    """A model gateway in front of the scripted provider."""

    provider: ScriptedProvider
    calls: ModelCalls
    llm: httpx.AsyncClient
    token: dict[str, str]
    usage: RecordedUsage = field(default_factory=RecordedUsage)

    async def ask(self) -> httpx.Response:
        return await self.llm.post(PATH, json=ASKED, headers=self.token)

    async def recorded(self) -> UsageRecorded:
        """The one record, which follows the one opening."""
        async with asyncio.timeout(5):
            while len(self.usage.events) < 2:  # noqa: ASYNC110 - under a deadline
                await asyncio.sleep(0.01)
        opened, recorded = self.usage.events
        assert isinstance(opened, UsageOpened)
        assert isinstance(recorded, UsageRecorded)
        assert opened.call_id == recorded.call_id
        return recorded


@pytest.fixture
async def gate(proxy: Proxy) -> AsyncGenerator[Gate]:
    provider = ScriptedProvider()
    await provider.start()
    usage = RecordedUsage()
    adapter = OpenAIProvider(provider.url, "sk-operator", "big", idle_s=0.5)
    calls = ModelCalls(
        demo=DemoModel(0), provider=adapter, usage=usage, clock=SystemClock(), new_id=new_id, log=get_logger("test")
    )
    app = model_gateway(ModelTools(proxy.table, calls, public_key(SEED), 64_000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as llm:
        yield Gate(provider, calls, llm, proxy.bearer(), usage)
    await calls.close()
    await adapter.close()
    await provider.stop()


@pytest.mark.parametrize("status", [401, 407])
async def test_a_refusal_of_the_operators_key_is_not_the_machines_fault(gate: Gate, status: int) -> None:
    gate.provider.answers(status)
    with capture_logs() as logs:
        answer = await gate.ask()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (502, "provider_credentials_refused", "server_error")
    assert "operator's credentials" in error["message"]
    assert not READ_AS_A_BAD_KEY.search(answer.text), "OpenClaw would stop using its own key"
    assert [(entry["log_level"], entry["status"]) for entry in logs] == [("error", status)]
    assert "sk-" not in answer.text + str(logs)
    recorded = await gate.recorded()
    assert (recorded.outcome, recorded.usage_known, recorded.input_tokens) == (UsageOutcome.FAILED, True, 0)


@pytest.mark.parametrize("status", [402, 403])
async def test_what_the_provider_does_not_allow_raises_no_alarm(gate: Gate, status: int) -> None:
    gate.provider.answers(status)
    with capture_logs() as logs:
        answer = await gate.ask()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, "provider_refused", "invalid_request_error")
    assert not READ_AS_A_BAD_KEY.search(answer.text), "OpenClaw would stop using its own key"
    assert [(entry["log_level"], entry["status"]) for entry in logs] == [("warning", status)]
    assert gate.calls.credentials_refused is False
    recorded = await gate.recorded()
    assert (recorded.outcome, recorded.usage_known, recorded.input_tokens) == (UsageOutcome.FAILED, True, 0)


async def test_refused_credentials_show_until_the_provider_takes_them_again(gate: Gate) -> None:
    assert gate.calls.credentials_refused is False
    gate.provider.answers(401)
    await gate.ask()
    assert gate.calls.credentials_refused is True
    await gate.llm.post(PATH, json={**ASKED, "model": "demo"}, headers=gate.token)
    assert gate.calls.credentials_refused is True, "the demo model says nothing about the provider"
    gate.provider.answers(429)
    await gate.ask()
    assert gate.calls.credentials_refused is False


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429])
async def test_a_refusal_of_the_request_passes_and_costs_nothing(gate: Gate, status: int) -> None:
    gate.provider.answers(status)
    answer = await gate.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "scripted")
    recorded = await gate.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.FAILED, True)
    assert (recorded.input_tokens, recorded.output_tokens, recorded.cached_tokens) == (0, 0, 0)


async def test_a_provider_that_asks_for_patience_says_how_long(gate: Gate) -> None:
    gate.provider.answers(429, **{"retry-after": "7", "retry-after-ms": "7000", "x-secret": "no"})
    answer = await gate.ask()
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "7000")
    assert "x-secret" not in answer.headers
    gate.provider.answers(503, **{"retry-after": "9"})
    answer = await gate.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "9")


@pytest.mark.parametrize(
    ("status", "seen", "code", "known"),
    [
        (500, 502, "provider_failed", True),
        (503, 502, "provider_failed", True),
        (301, 502, "provider_failed", True),
        (504, 504, "provider_timeout", False),
    ],
)
async def test_a_failing_provider_is_typed(gate: Gate, status: int, seen: int, code: str, *, known: bool) -> None:
    gate.provider.answers(status)
    answer = await gate.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (seen, code)
    recorded = await gate.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.FAILED, known)


async def test_a_provider_that_is_not_there_cost_nothing(gate: Gate) -> None:
    await gate.provider.stop()
    answer = await gate.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_unavailable")
    assert (await gate.recorded()).usage_known is True


async def test_a_provider_that_is_silent_may_have_cost_something(gate: Gate) -> None:
    gate.provider.hang = True
    answer = await gate.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "provider_timeout")
    assert gate.provider.requests == 1
    assert (await gate.recorded()).usage_known is False, "it has the request: nobody knows what it did with it"


async def test_an_answer_without_counts_stays_unknown(gate: Gate) -> None:
    gate.provider.response = lambda: Response(200, b"data: [DONE]\n\n", {"content-type": "text/event-stream"})
    assert (await gate.ask()).status_code == 200
    recorded = await gate.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.COMPLETED, False)


def test_every_status_has_one_verdict() -> None:
    operators, refusals = {401, 407}, {402, 403}
    for status in range(100, 600):
        passes = status // 100 == 2 or (status // 100 == 4 and status not in operators | refusals)
        assert (judge(status) is Verdict.PASSES) == passes, status
        assert not (costs_nothing(status) and status // 100 == 2), "an answer is what one pays for"
    assert {judge(status) for status in operators} == {Verdict.OPERATOR}
    assert {judge(status) for status in refusals} == {Verdict.REFUSED}
    assert (judge(524), costs_nothing(524)) == (Verdict.TIMEOUT, False), "behind a CDN the model may still be at work"
