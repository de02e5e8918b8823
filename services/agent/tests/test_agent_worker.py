"""The worker: one answer per run whatever dies, is delivered twice, or comes back from the dead."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hatchery_agent.domain.errors import LeaseLost, ThreadBusy
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.handlers.ending import ABANDONED, close_run
from hatchery_agent.handlers.runs import answer_message
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import Lease
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


async def test_a_command_delivered_again_after_its_thread_has_moved_changes_nothing(world):
    await world.deliver()
    world.rows.runs["run_1"] = replace(world.rows.runs["run_1"], instance_id="ins_of_later")
    await world.deliver()
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
        assert sorted(world.runtime.received) == ["And?", "Hi"], world.fate.names[die_at - 1]
        ended = sorted(fact for fact in world.rows.facts if not fact.startswith("started"))
        assert ended == ["finished-run_1", "finished-run_2"], world.fate.names[die_at - 1]
        assert [world.types(run_id).count("message.user") for run_id in state.runs] == [1, 1]
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


async def test_who_waits_for_a_thread_takes_no_slot_from_those_that_could_work(world):
    tools = replace(world.tools, slots=asyncio.Semaphore(1))
    world.rows.holder = "wrk_other"
    working = asyncio.create_task(answer_message(world.delivery(), tools=tools))
    await asyncio.sleep(0.05)
    assert world.fate.names.count("take") > 0, "it waits"
    assert not tools.slots.locked()
    world.rows.holder = None
    await working
    assert ends(world) == ["run.finished"]


async def test_a_text_that_was_swept_is_a_named_end(world):
    world.rows.submit("run_1", None)
    await world.deliver()
    assert world.state.runs["run_1"].end["code"] == "message_expired"
    assert world.runtime.received == []


async def test_an_unknown_run_is_not_found_and_a_mixed_up_command_is_invalid(world):
    with pytest.raises(NotFound):
        await world.deliver("run_9")
    delivery = world.delivery()
    delivery = delivery._replace(message=delivery.message.model_copy(update={"thread_id": "thd_other"}))
    with pytest.raises(InvalidInput):
        await answer_message(delivery, tools=world.tools)


async def test_a_run_nobody_works_on_is_closed_once(world):
    assert await world.deliver_and_die(12)
    row = world.rows.runs["run_1"]
    await close_run(row, ABANDONED, tools=world.tools)
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


async def test_a_run_that_its_row_calls_ended_and_the_log_does_not_blocks_nobody(world):
    assert await world.deliver_and_die(12)
    world.rows.runs["run_1"] = replace(world.rows.runs["run_1"], ended=True)  # the log was restored from before its end
    world.rows.submit("run_2", "Again")
    await world.deliver("run_2")
    assert world.state.runs["run_1"].end["code"] == "abandoned"
    assert world.state.runs["run_2"].phase is RunPhase.FINISHED
