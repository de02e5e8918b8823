"""The whole agent on real servers: what is posted is answered once, in order, whoever listens."""

from __future__ import annotations

import pytest
from agent_stack import TENANT, Stack
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import Lease
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import GET_THREAD, RUN_ENDS, GetThreadRequest, ThreadEntryType


async def test_a_posted_message_streams_into_the_log_and_is_announced_once(stack: Stack):
    thread = await stack.thread()
    await stack.post(thread, "run_1", times=3)
    entries = await stack.until_end(thread, "run_1")
    kinds = [str(entry.type) for entry in entries]
    assert kinds[:4] == ["thread.created", "message.user", "run.queued", "run.started"]
    assert kinds[-2:] == ["message.assistant", "run.finished"]
    assert "".join(e.data["text"] for e in entries if e.type is ThreadEntryType.TEXT_DELTA) == "One two three"
    assert await stack.facts(2) == ["run_1-started-1", "run_1-end"]
    await stack.post(thread, "run_2")
    await stack.until_end(thread, "run_2")
    assert stack.proxy.seen == {"run_1": 1, "run_2": 1}
    view = await stack.bus.call(GET_THREAD, GetThreadRequest(tenant=TENANT, thread_id=thread.thread_id))
    assert view.last_run_id == "run_2"


async def test_messages_of_one_thread_are_answered_in_order_and_of_two_threads_side_by_side(stack: Stack):
    first, second = await stack.thread("a"), await stack.thread("b")
    for number in range(3):
        await stack.post(first, f"run_a{number}")
        await stack.post(second, f"run_b{number}")
    entries = await stack.until_end(first, "run_a2")
    started = [entry.run_id for entry in entries if entry.type is ThreadEntryType.RUN_STARTED]
    ended = [entry.run_id for entry in entries if entry.type in RUN_ENDS]
    assert started == ended == ["run_a0", "run_a1", "run_a2"]
    await stack.until_end(second, "run_b2")


async def test_a_broken_stream_is_taken_up_and_folds_to_one_answer(stack: Stack):
    stack.proxy.break_first = True
    thread = await stack.thread()
    await stack.post(thread, "run_1")
    entries = await stack.until_end(thread, "run_1")
    assert [entry.attempt for entry in entries if entry.type is ThreadEntryType.RUN_STARTED] == [1, 2]
    assert [entry.type for entry in entries].count(ThreadEntryType.MESSAGE_ASSISTANT) == 1


async def test_a_zombies_append_is_refused_by_the_real_log(stack: Stack):
    thread = await stack.thread()
    zombie = ThreadWriter(stack.agent_bus.threads, Lease(TENANT, thread.thread_id, "wrk_old", 1), SystemClock())
    await zombie.open(0)
    await stack.post(thread, "run_1")
    before = await stack.until_end(thread, "run_1")
    with pytest.raises(LeaseLost):
        await zombie.append(zombie.entry(ThreadEntryType.RUN_STARTED, "run_1", 1))
    after = [item.entry async for item in stack.bus.threads.read(TENANT, thread.thread_id)]
    assert after == before


async def test_reading_resumes_after_any_sequence(stack: Stack):
    thread = await stack.thread()
    await stack.post(thread, "run_1")
    await stack.until_end(thread, "run_1")
    again = [item async for item in stack.bus.threads.read(TENANT, thread.thread_id)]
    resumed = [item async for item in stack.bus.threads.read(TENANT, thread.thread_id, again[3].sequence)]
    assert resumed == again[4:]
    assert [item.sequence for item in again] == sorted({item.sequence for item in again})
