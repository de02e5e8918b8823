"""The worker: one answer per run whatever dies, is delivered twice, or comes back from the dead."""

from __future__ import annotations

import asyncio

import pytest
from hatchery_agent.domain.decisions import Finished, Usage
from hatchery_agent.domain.errors import LeaseLost, ThreadBusy
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.domain.recovery import History, PastMessage, find_answer
from hatchery_agent.handlers.runs import answer_message, close_stale_run
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import GatewayNotReady, Lease, TurnError
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import ThreadEntryType
from hatchery_common.errors import InvalidInput, NotFound

ORDER = ["message.user", "run.queued", "run.started", "run.status", "text.delta", "message.assistant", "run.finished"]


def ends(world) -> list[str]:
    return [kind for kind in world.types() if kind in ("run.finished", "run.failed")]


async def test_a_message_is_answered_in_the_order_that_readers_expect(world):
    await world.deliver()
    kinds = world.types()
    assert [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]] == ORDER
    assert str(world.log.items[0].entry.type) == "thread.created"
    run = world.state.runs["run_1"]
    assert (run.phase, run.answer, run.text) == (RunPhase.FINISHED, "Hello there.", "Hello there.")
    assert run.end["usage"] == {"input_tokens": 12, "output_tokens": 3}
    assert run.end["first_text_ms"] >= 0
    assert world.rows.facts == ["started-run_1-1", "finished-run_1"]
    assert world.rows.runs["run_1"].text is None, "the text row goes once the log holds it"
    assert world.rows.holder is None


async def test_a_command_delivered_twice_answers_once(world):
    await world.deliver()
    before = len(world.log.items)
    await world.deliver()
    assert len(world.log.items) == before
    assert world.runtime.received == ["Hi"]


async def test_a_death_at_any_step_leaves_exactly_one_answer(make_world):
    steps = 0
    for die_at in range(1, 200):
        world = make_world()
        world.rows.submit("run_1", "Hi")
        died = await world.deliver_until_acked(die_at=die_at)
        assert world.runtime.received == ["Hi"], f"sent twice after a death at {world.fate.names[die_at - 1]}"
        assert ends(world) == ["run.finished"], world.fate.names[die_at - 1]
        assert world.types().count("message.user") == 1
        assert world.types().count("message.assistant") == 1
        assert world.state.runs["run_1"].visible_text == "Hello there."
        assert world.rows.facts.count("finished-run_1") == 1
        if not died:
            break
        steps += 1
    assert steps > 20, "the test reached every step of a run"


async def test_a_run_left_open_is_finished_before_the_next_message_of_its_thread(make_world):
    for die_at in range(1, 40):
        world = make_world()
        world.rows.submit("run_1", "Hi")
        world.rows.submit("run_2", "And?")
        if not await world.deliver_and_die(die_at):
            break
        await world.deliver("run_2")  # redelivery may come in the other order after a death
        await world.deliver("run_1")
        state = world.state
        assert {run.phase for run in state.runs.values()} == {RunPhase.FINISHED}
        assert sorted(world.runtime.received) == ["And?", "Hi"]
        if "run_1" in [item.entry.run_id for item in world.log.items[:3]]:
            assert world.runtime.received[0] == "Hi", "a logged message keeps its place"


async def test_an_append_whose_answer_was_lost_is_recognised_as_ours(world):
    world.log.lose_answer = 3
    await world.deliver()
    assert ends(world) == ["run.finished"]
    assert world.types().count("message.user") == 1


async def test_a_zombie_is_refused_by_the_log(world):
    zombie = ThreadWriter(world.log, Lease("tenant-a", "thd_1", "wrk_old", 1), SystemClock())
    await zombie.open(0)
    await world.deliver()
    before = list(world.log.items)
    with pytest.raises(LeaseLost):
        await zombie.append(zombie.entry(ThreadEntryType.RUN_STARTED, "run_1", 1))
    assert world.log.items == before


async def test_a_worker_whose_lease_is_taken_stops_at_once(world):
    world.runtime.hang = True
    working = asyncio.create_task(world.deliver())
    await world.runtime.hanging.wait()
    world.rows.fence += 1  # another worker took the thread
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(5):
            await working
    assert ends(world) == []


async def test_a_thread_held_by_another_worker_waits_uncounted(world):
    world.rows.holder = "wrk_other"
    with pytest.raises(ThreadBusy) as caught:
        await world.deliver()
    assert caught.value.retry == "dependency"


async def test_a_lease_given_back_meanwhile_is_taken(world):
    world.rows.holder = "wrk_other"
    working = asyncio.create_task(world.deliver())
    await asyncio.sleep(0.05)
    world.rows.holder = None
    await working
    assert ends(world) == ["run.finished"]


async def test_a_stream_that_breaks_is_taken_up_by_the_next_attempt(world):
    world.runtime.break_after = 2
    await world.deliver()
    run = world.state.runs["run_1"]
    assert (run.phase, run.attempt, run.text) == (RunPhase.FINISHED, 2, "Hello there.")
    assert world.runtime.received == ["Hi"]


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


async def test_an_instance_that_comes_up_is_waited_for(world):
    world.runtime.states = [GatewayNotReady("starting"), GatewayNotReady("starting")]
    await world.deliver()
    assert ends(world) == ["run.finished"]
    waits = [i.entry.data for i in world.log.items if i.entry.data.get("phase") == "waiting_for_instance"]
    assert waits == [{"phase": "waiting_for_instance", "state": "starting"}], "told once, not at every try"


async def test_an_instance_that_does_not_come_up_ends_the_run_in_time(world):
    world.runtime.states = [GatewayNotReady("starting", "booting")] * 50
    await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "instance_not_running"
    assert "starting" in world.state.runs["run_1"].end["message"]


@pytest.mark.parametrize("state", ["stopped", "error", "deleted"])
async def test_an_instance_that_will_not_come_up_ends_the_run_at_once(world, state: str):
    world.runtime.states = [GatewayNotReady(state)]
    await world.deliver()
    end = world.state.runs["run_1"].end
    assert end["code"] == "instance_not_running"
    assert state in end["message"]


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


async def test_a_text_that_was_swept_is_a_named_end(world):
    world.rows.submit("run_1", None)
    await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "message_expired"
    assert world.runtime.received == []


async def test_an_unknown_run_is_not_found_and_a_mixed_up_command_is_invalid(world):
    with pytest.raises(NotFound):
        await world.deliver("run_9")
    delivery = world.delivery()
    message = delivery.message.model_copy(update={"thread_id": "thd_other"})
    object.__setattr__(delivery, "message", message)
    with pytest.raises(InvalidInput):
        await answer_message(delivery, tools=world.tools)


async def test_a_run_nobody_works_on_is_closed_once(world):
    assert await world.deliver_and_die(12)
    row = world.rows.runs["run_1"]
    await close_stale_run(row, tools=world.tools)
    assert ends(world) == ["run.failed"]
    await world.deliver()
    assert ends(world) == ["run.failed"]


async def test_a_log_shorter_than_the_row_remembers_is_folded_from_its_start(world):
    await world.deliver()
    world.rows.submit("run_2", "Again")
    world.rows.runs["run_2"] = world.rows.runs["run_2"].__class__(
        **{**world.rows.runs["run_2"].__dict__, "quiet": 10_000}
    )
    await world.deliver("run_2")
    assert world.state.runs["run_2"].phase is RunPhase.FINISHED


async def test_a_run_that_only_the_log_remembers_does_not_block_its_thread(world):
    assert await world.deliver_and_die(12)
    del world.rows.runs["run_1"]  # the database was restored from before it
    world.rows.submit("run_2", "Again")
    await world.deliver("run_2")
    assert world.state.runs["run_1"].end["code"] == "abandoned"
    assert world.state.runs["run_2"].phase is RunPhase.FINISHED


async def test_an_answer_too_large_for_the_bus_is_cut_and_says_so(world):
    world.runtime.answer = ("é" * 300_000,)
    await world.deliver()
    final = next(i.entry.data for i in world.log.items if i.entry.type is ThreadEntryType.MESSAGE_ASSISTANT)
    assert final["truncated"] is True
    assert len(final["text"].encode()) <= 400_000
    assert world.types().count("text.delta") == 3
