"""One turn: how it is taken up, recovered and ended, whatever the gateway does."""

from __future__ import annotations

import asyncio

import pytest
from hatchery_agent.domain.decisions import Finished, Usage
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.domain.recovery import History, PastMessage, find_answer
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.ports import Accepted, GatewayNotReady, TurnError
from hatchery_common.contracts.threads import ThreadEntryType


async def test_a_stream_that_breaks_is_taken_up_by_the_next_attempt(world):
    world.runtime.break_after = 2
    await world.deliver()
    run = world.state.runs["run_1"]
    assert (run.phase, run.attempt, run.text) == (RunPhase.FINISHED, 2, "Hello there.")
    assert world.runtime.received == ["Hi"]


async def test_an_answer_older_than_the_wait_outlives_a_short_break(make_world):
    world = make_world(limits=TurnLimits(turn_s=30, start_s=0.5, recovery_s=0))
    world.rows.submit("run_1", "Hi")
    original = world.runtime._events

    async def slow_then_broken(message: str, key: str):
        world.runtime._events = original
        yield await anext(original(message, key))
        await asyncio.sleep(0.6)
        world.runtime.states = [GatewayNotReady("starting")]  # the proxy, too, has just been started

    world.runtime._events = slow_then_broken
    park, looks = world.rows.park, []

    async def told(*args, **kwargs) -> None:
        looks.append(kwargs["look_s"])
        await park(*args, **kwargs)

    world.rows.park = told
    await world.deliver()
    assert looks == [0.25], "no event will come, so it looks again soon"
    await world.resume()
    run = world.state.runs["run_1"]
    assert (run.phase, run.attempt) == (RunPhase.FINISHED, 2)
    assert run.end["duration_ms"] >= 600, "of the whole run"


async def test_a_gateway_restart_in_the_middle_ends_as_interrupted_and_says_so(world):
    world.runtime.break_after, world.runtime.restart_on_break = 2, True
    await world.deliver()
    run = world.state.runs["run_1"]
    assert run.phase is RunPhase.FAILED
    assert run.end["code"] == "interrupted"
    assert run.end["retryable"] is True
    assert "restarted during this answer" in run.end["message"]
    assert world.rows.facts[-1] == "failed-run_1"


ASKED = PastMessage("user", "Hi", "run_1:user")
RESUMED = PastMessage("user", "[System] Your previous turn was interrupted by a gateway restart …", "50d367d2:user")


async def test_a_turn_that_openclaw_resumes_after_its_restart_ends_with_that_answer(world):
    world.runtime.break_after, world.runtime.restart_on_break = 2, True
    answer = PastMessage("assistant", "Hello after all.", stop_reason="stop", usage=Usage(5, 6))
    world.runtime.histories = [
        History((ASKED,), active=True),
        History((ASKED, RESUMED), active=True),
        History((ASKED, RESUMED, answer)),
    ]
    await world.deliver()
    run = world.state.runs["run_1"]
    assert (run.phase, run.answer) == (RunPhase.FINISHED, "Hello after all.")
    assert run.end["usage"] == {"input_tokens": 5, "output_tokens": 6}
    assert "recovering" in [item.entry.data.get("phase") for item in world.log.items]
    assert world.runtime.received == ["Hi"]


async def test_a_message_that_joined_a_running_turn_gets_that_turns_answer(world):
    world.runtime.steered = True
    world.runtime.histories = [History((ASKED,), active=True), History((ASKED, PastMessage("assistant", "Both.")))]
    await world.deliver()
    assert world.state.runs["run_1"].answer == "Both."


async def test_a_message_that_joined_a_turn_without_an_answer_says_so(world):
    world.runtime.steered = True
    world.runtime.histories = [History((ASKED,))]
    await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "steered"


def test_only_what_follows_the_question_and_is_complete_is_its_answer():
    said = PastMessage("assistant", "Before.", stop_reason="stop")
    tool = PastMessage("assistant", "Let me look.", stop_reason="toolUse")
    done = PastMessage("assistant", "Done.", stop_reason="stop")
    later = PastMessage("user", "More", "run_2:user")
    assert find_answer(History((said,)), "run_1") is None
    assert find_answer(History((said, ASKED)), "run_1") is None
    assert find_answer(History((ASKED, tool)), "run_1") is None
    assert find_answer(History((ASKED, done), active=True), "run_1") is None, "more may come"
    assert find_answer(History((ASKED, RESUMED, tool, done)), "run_1") == Finished("Done.")
    assert find_answer(History((ASKED, done, later), active=True), "run_1") == Finished("Done.")
    assert find_answer(History((ASKED, later, done)), "run_1") is None


async def test_a_refusal_is_no_reason_to_retry(world):
    world.runtime.states = [GatewayNotReady("unreachable", "wrong token", refused=True)]
    await world.deliver()
    assert world.state.runs["run_1"].end["retryable"] is False


async def test_a_turn_that_takes_too_long_ends(make_world):
    world = make_world(limits=TurnLimits(turn_s=0.3, start_s=0.1))
    world.rows.submit("run_1", "Hi")
    world.runtime.hang = True
    async with asyncio.timeout(5):
        await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "turn_deadline"
    assert world.runtime.aborted == ["run_1"], "OpenClaw does not go on with what nobody takes"


@pytest.mark.parametrize("fault", ["unreachable", "hangs"])
async def test_a_turn_that_cannot_be_aborted_ends_all_the_same(make_world, fault: str):
    world = make_world(limits=TurnLimits(turn_s=0.3, start_s=0.1, abort_s=0.1))
    world.rows.submit("run_1", "Hi")
    world.runtime.hang = True

    async def abort(*_: object) -> None:
        if fault == "hangs":
            await asyncio.sleep(60)
        raise GatewayNotReady("unreachable")

    world.runtime.abort = abort
    async with asyncio.timeout(5):
        await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "turn_deadline"


async def test_a_turn_that_openclaw_never_took_is_not_aborted(make_world):
    world = make_world(limits=TurnLimits(turn_s=0.3, start_s=0.1))
    world.rows.submit("run_1", "Hi")

    async def silent(message: str, key: str):
        await asyncio.sleep(60)
        yield Accepted()

    world.runtime._events = silent
    await world.deliver()
    assert (world.state.runs["run_1"].end["code"], world.runtime.aborted) == ("turn_deadline", [])


async def test_an_error_of_the_gateway_ends_the_run_with_its_code(world):
    world.runtime.error = TurnError("gateway_run_failed", "the model is down")
    await world.deliver()
    assert world.state.runs["run_1"].end["message"] == "the model is down"


async def test_too_many_broken_attempts_are_given_up(make_world):
    world = make_world(max_attempts=2)
    world.rows.submit("run_1", "Hi")
    world.runtime.answer = ()
    world.runtime.break_after = 0
    world.runtime.hang = False

    original = world.runtime._events

    async def always_breaks(message: str, key: str):
        async for event in original(message, key):
            yield event
            return

    world.runtime._events = always_breaks
    await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "gave_up"


async def test_an_answer_too_large_for_the_bus_is_cut_and_says_so(world):
    world.runtime.answer = ("é" * 300_000,)
    await world.deliver()
    final = next(i.entry.data for i in world.log.items if i.entry.type is ThreadEntryType.MESSAGE_ASSISTANT)
    assert final["truncated"] is True
    assert len(final["text"].encode()) <= 400_000
    assert world.types().count("text.delta") == 3
