"""Model calls whose reader hangs up or is held up: they are recorded with their counts, and who comes back learns why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from hatchery_common.clock import SystemClock
from hatchery_common.contracts.gateways import UsageOutcome, UsageRecorded
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.ids import new_id
from hatchery_common.log import get_logger
from hatchery_runtime_proxy.adapters.demo import DemoModel
from hatchery_runtime_proxy.handlers.calls import CallLimits
from hatchery_runtime_proxy.handlers.models import ModelCalls, Passage
from hatchery_runtime_proxy.ports import Completion
from proxy_stage import RecordedUsage
from structlog.testing import capture_logs

ROUTE = Route(
    instance_id="ins_1", tenant="ta", state=RouteState.RUNNING, route_version=1, machine_id="mch_1", changed_at_ms=1
)
WORD = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
COUNTS = {"prompt_tokens": 10, "completion_tokens": 300}


class Scripted:
    """A provider that says so many words at a pace, then its counts; with `goes_on` it never comes to them."""

    name, models = "scripted", ()

    def __init__(self, words: int, pause_s: float = 0.0, *, goes_on: bool = False, usage: Any = COUNTS) -> None:
        self.words, self.pause_s, self.goes_on, self.usage = words, pause_s, goes_on, usage

    @asynccontextmanager
    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Completion]:
        yield Completion(200, "text/event-stream", self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        said = 0
        while self.goes_on or said < self.words:
            yield WORD
            said += 1
            await asyncio.sleep(self.pause_s)
        yield b"data: %s\n\n" % json.dumps({"choices": [], "usage": self.usage}).encode()
        yield b"data: [DONE]\n\n"


class Desk:
    """Model calls over one scripted provider."""

    def __init__(self, provider: Scripted, **limits: float) -> None:
        self.usage = RecordedUsage()
        self.calls = ModelCalls(
            demo=DemoModel(0),
            provider=provider,
            usage=self.usage,
            clock=SystemClock(),
            new_id=new_id,
            log=get_logger("test"),
            limits=CallLimits(**limits),
        )

    async def ask(self, *, stream: bool = True) -> Passage:
        return await self.calls.open(ROUTE, {"model": "default", "stream": stream, "messages": []})

    async def recorded(self) -> UsageRecorded:
        async with asyncio.timeout(5):
            while len(self.usage.events) < 2:  # noqa: ASYNC110 - under a deadline
                await asyncio.sleep(0.01)
        found = self.usage.events[1]
        assert isinstance(found, UsageRecorded)
        return found


async def leave(passage: Passage) -> None:
    """Take one piece and hang up."""
    await anext(passage.chunks)
    await passage.chunks.aclose()  # pyright: ignore[reportAttributeAccessIssue]


async def test_a_long_answer_is_counted_to_its_end_though_its_reader_left() -> None:
    desk = Desk(Scripted(300, 0.002))
    await leave(await desk.ask())
    recorded = await desk.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.COMPLETED, True)
    assert (recorded.input_tokens, recorded.output_tokens) == (10, 300)
    assert CallLimits().abandoned_s >= 600, "as long as the longest turn"


async def test_an_answer_without_an_end_is_left_at_last_and_that_is_told() -> None:
    desk = Desk(Scripted(0, 0.01, goes_on=True), abandoned_s=0.2)
    with capture_logs() as logs:
        await leave(await desk.ask())
        recorded = await desk.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.INTERRUPTED, False)
    assert [(entry["event"], entry["call_id"]) for entry in logs] == [("model_call.usage_unknown", recorded.call_id)]


async def test_a_reader_that_was_held_up_for_too_long_learns_it() -> None:
    desk = Desk(Scripted(300), reader_s=0.1)
    passage = await desk.ask()
    first = await anext(passage.chunks)
    recorded = await desk.recorded()  # the answer goes on without it
    async with asyncio.timeout(1):
        rest = b"".join([chunk async for chunk in passage.chunks])
    assert first == WORD
    assert rest.startswith(b"\n\ndata: "), "the last piece may have been half an event"
    assert json.loads(rest.strip().removeprefix(b"data: "))["error"]["code"] == "reader_too_slow"
    assert (recorded.outcome, recorded.output_tokens) == (UsageOutcome.COMPLETED, 300)


async def test_a_whole_answer_that_was_not_taken_in_time_just_ends() -> None:
    desk = Desk(Scripted(300), reader_s=0.1)
    passage = await desk.ask(stream=False)
    await anext(passage.chunks)
    await desk.recorded()
    async with asyncio.timeout(1):
        assert [chunk async for chunk in passage.chunks] == []


async def test_calls_that_do_not_end_are_recorded_when_the_process_does() -> None:
    desk = Desk(Scripted(0, 0.01, goes_on=True), closing_s=0.1)
    passage = await desk.ask()
    await anext(passage.chunks)
    await desk.calls.close()
    recorded = await desk.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.INTERRUPTED, False)


async def test_counts_that_cannot_be_read_are_told() -> None:
    desk = Desk(Scripted(1, usage={"prompt_tokens": "10", "completion_tokens": 3}))
    passage = await desk.ask()
    with capture_logs() as logs:
        assert [chunk async for chunk in passage.chunks][-1] == b"data: [DONE]\n\n"
        recorded = await desk.recorded()
    assert (recorded.outcome, recorded.usage_known) == (UsageOutcome.COMPLETED, False)
    assert [(entry["event"], entry["unreadable"]) for entry in logs] == [("model_call.usage_unknown", True)]
