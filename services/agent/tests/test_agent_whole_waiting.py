"""The whole agent on real servers: runs that wait for their instance, and runs that nobody will answer."""

from __future__ import annotations

import asyncio
import time

import pytest
from agent_stack import TENANT, Stack
from hatchery_common.contracts.threads import PostMessage, ThreadEntry, ThreadEntryType, ThreadView


async def waiting(stack: Stack, count: int) -> list[ThreadView]:
    """So many threads, each with a message to an instance of its own that is starting."""

    few = asyncio.Semaphore(4)

    async def one(number: int) -> ThreadView:
        stack.proxy.starting.add(f"ins_w{number}")
        async with few:
            thread = await stack.thread(f"w{number}", f"ins_w{number}")
            await stack.post(thread, f"run_w{number}")
        await stack.until_waiting(thread)
        return thread

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def phases(entries: list[ThreadEntry]) -> list[str]:
    return [entry.data["phase"] for entry in entries if entry.type is ThreadEntryType.RUN_STATUS]


async def test_who_waits_for_an_instance_keeps_no_one_else_waiting(stack: Stack):
    first = time.monotonic()
    threads = await waiting(stack, 40)  # the process works on 16 runs at a time
    began = time.monotonic()
    ready = await stack.thread("r", "ins_ready")
    await stack.post(ready, "run_r")
    await stack.until_end(ready, "run_r")
    assert time.monotonic() - began < 8
    looks = 1 + (time.monotonic() - first) / 10
    assert stack.proxy.refused <= 40 * looks, "it is news that ends the wait, not asking again and again"
    await asyncio.gather(*(stack.ready(f"ins_w{number}") for number in range(40)))
    ends = await asyncio.gather(*(stack.until_end(thread, f"run_w{n}") for n, thread in enumerate(threads)))
    assert {str(entries[-1].type) for entries in ends} == {"run.finished"}


async def test_a_run_starts_with_its_instances_event(stack: Stack):
    (thread,) = await waiting(stack, 1)
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await stack.ready("ins_w0")
    entries = await stack.until_end(thread, "run_w0")
    assert time.monotonic() - began < 8, "it did not wait for its next look"
    assert stack.proxy.seen == {"run_w0": 1}
    assert stack.proxy.refused == 1, "nobody asked in between"
    assert phases(entries)[:2] == ["waiting_for_instance", "accepted"]
    facts = await stack.facts(2)
    assert facts == ["run_w0-started-1", "run_w0-end"]
    assert await stack.causes() == ["run_w0", "run_w0"], "the facts still name the command that was acknowledged"


async def test_an_event_before_the_route_is_followed_by_looks(stack: Stack):
    (thread,) = await waiting(stack, 1)
    await stack.ready("ins_w0", lag_s=0.6)
    began = time.monotonic()
    await stack.until_end(thread, "run_w0")
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("start_deadline_s", [2.0])
async def test_a_wait_ends_at_its_deadline_with_its_name(stack: Stack, start_deadline_s: float):
    began = time.monotonic()
    (thread,) = await waiting(stack, 1)
    entries = await stack.until_end(thread, "run_w0")
    assert start_deadline_s <= time.monotonic() - began < 8
    assert (entries[-1].data["code"], entries[-1].data["retryable"]) == ("instance_not_running", True)
    assert "starting" in entries[-1].data["message"]


async def test_a_command_that_becomes_a_dead_letter_ends_its_run_in_the_thread(stack: Stack):
    thread = await stack.thread()
    wrong = {"instance_id": "ins_other"}
    await stack.post(thread, "run_1", change=wrong)
    entries = await stack.until_end(thread, "run_1")
    assert [str(entry.type) for entry in entries[-3:]] == ["message.user", "run.queued", "run.failed"]
    assert entries[-1].data["code"] == "undeliverable"
    assert await stack.facts(1) == ["run_1-end"]
    await stack.bus.publish(
        PostMessage(
            tenant=TENANT, thread_id=thread.thread_id, run_id="run_1", instance_id="ins_1", message_id="msg_run_1"
        ),
        id="run_1-again",
    )
    await stack.post(thread, "run_2")
    entries = await stack.until_end(thread, "run_2")
    assert [e.run_id for e in entries if e.type is ThreadEntryType.RUN_FINISHED] == ["run_2"]
