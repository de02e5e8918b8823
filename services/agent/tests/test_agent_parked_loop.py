"""The loop that takes parked runs up: woken by events, outliving failures, and what ends runs that nobody will answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from agent_fakes import Crash
from hatchery_agent.domain.errors import LeaseLost, ThreadBusy
from hatchery_agent.handlers.parked import ParkedRuns, wake_runs
from hatchery_agent.handlers.sweeps import BACKLOG_S, end_dead_run, sweep
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.ports import GatewayNotReady
from hatchery_common.clock import FixedClock
from hatchery_common.errors import DependencyUnavailable, InvalidInput
from structlog.testing import CapturingLogger

STARTING = GatewayNotReady("starting", "booting")


def ends(world) -> list[str]:
    return [kind for kind in world.types() if kind in ("run.finished", "run.failed")]


async def test_the_loop_takes_up_what_its_event_made_due(make_world):
    world = make_world(limits=TurnLimits(turn_s=30, start_s=5, recovery_s=0))  # without the event it looks after 5 s
    world.rows.submit("run_1", "Hi")
    world.runtime.states = [STARTING]
    await world.deliver()
    tools = world.tools
    loop = asyncio.create_task(ParkedRuns(tools, CapturingLogger(), limit=4).run())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    now = datetime.now(UTC)
    await wake_runs(world.news(now), parking=world.rows, wake=tools.wake, clock=FixedClock(now), horizon_s=60)
    async with asyncio.timeout(10):
        while not ends(world):  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.005)
    assert time.monotonic() - began < 3
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert world.rows.holder is None


async def test_old_news_wakes_nobody(world):
    world.runtime.states = [STARTING]
    await world.deliver()
    now = datetime.now(UTC)
    old = world.news(now - timedelta(seconds=61))
    await wake_runs(old, parking=world.rows, wake=world.tools.wake, clock=FixedClock(now), horizon_s=60)
    assert not await world.rows.due(1)


@pytest.mark.parametrize(("error", "looks"), [(InvalidInput("broken"), 1), (RuntimeError("a defect"), 10)])
async def test_a_parked_run_that_only_fails_is_given_up_and_says_so(world, monkeypatch, error: Exception, looks: int):
    world.runtime.states = [STARTING]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")
    tries = 0

    def broken(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise error

    world.runtime.send = broken
    monkeypatch.setattr("hatchery_agent.handlers.parked._AGAIN_S", 0.001)
    loop = asyncio.create_task(ParkedRuns(world.tools, CapturingLogger(), limit=4).run())
    async with asyncio.timeout(5):
        while not ends(world):  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.005)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert tries == looks
    assert world.state.runs["run_1"].end["code"] == "abandoned"


async def test_a_run_that_cannot_even_be_given_up_is_reported_and_comes_back(world, monkeypatch):
    world.runtime.states = [STARTING]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")

    async def defect(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    original, log = world.rows.load, CapturingLogger()
    monkeypatch.setattr("hatchery_agent.handlers.parked._AGAIN_S", 0.001)
    monkeypatch.setattr("hatchery_agent.handlers.parked.resume_run", defect)
    monkeypatch.setattr("hatchery_agent.handlers.parked.close_run", defect)
    loop = asyncio.create_task(ParkedRuns(world.tools, log, limit=4).run())
    async with asyncio.timeout(5):
        while not log.calls or log.calls[-1].args != ("agent.parked.not_closed",):  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.005)
    assert log.calls[-1].kwargs["reason"] == "RuntimeError: a defect"
    assert (await original("tenant-a", "run_1")).parked
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_the_loop_outlives_a_database_that_is_away(world):
    world.runtime.states = [STARTING]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")
    original, failures = world.rows.due, iter([DependencyUnavailable("away")])

    async def due(limit: int):
        for failure in failures:
            raise failure
        return await original(limit)

    world.rows.due = due
    loop = asyncio.create_task(ParkedRuns(world.tools, CapturingLogger(), limit=4).run())
    async with asyncio.timeout(5):
        while not ends(world):  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.01)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert ends(world) == ["run.finished"]


async def test_a_worker_at_work_may_end_when_the_service_stops(world):
    world.runtime.states = [STARTING]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")
    original, sent, go_on = world.runtime.send, asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(*args: object):
        sent.set()
        await go_on.wait()
        async with original(*args) as events:
            yield events

    world.runtime.send = slow
    loop = asyncio.create_task(ParkedRuns(world.tools, CapturingLogger(), limit=4).run())
    await sent.wait()
    loop.cancel()
    await asyncio.sleep(0.05)
    assert not loop.done(), "it waits for the answer"
    go_on.set()
    await asyncio.gather(loop, return_exceptions=True)
    assert ends(world) == ["run.finished"]
    assert world.rows.holder is None


def failing(error: Exception):
    async def fails(*_: object) -> None:
        raise error

    return fails


async def dead(world, message_id: str = "run_1") -> None:
    await end_dead_run(message_id, "any", rows=world.rows, tools=world.tools, log=CapturingLogger())


async def test_a_dead_letter_ends_a_run_that_the_log_has_not_seen(world):
    await dead(world)
    assert world.types() == ["message.user", "run.queued", "run.failed"]
    run = world.state.runs["run_1"]
    assert (run.question, run.end["code"], run.end["retryable"]) == ("Hi", "undeliverable", True)
    assert world.rows.facts == ["failed-run_1"]
    await dead(world)  # its acknowledgement was lost
    await world.deliver()  # an operator sends it again out of the dead letters
    assert ends(world) == ["run.failed"]
    assert world.runtime.received == []


async def test_a_dead_letter_ends_a_run_that_broke_off(world):
    assert await world.deliver_and_die(12)
    await dead(world)
    assert ends(world) == ["run.failed"]
    assert world.types().count("message.user") == 1


async def test_a_death_while_a_dead_letter_is_told_leaves_one_end(make_world):
    for die_at in range(1, 30):
        world = make_world()
        world.rows.submit("run_1", "Hi")
        world.fate.die_at = die_at
        try:
            await dead(world)
        except Crash:
            world.fate.restart()
            world.rows.holder = None
            await dead(world)
        else:
            break
        assert ends(world) == ["run.failed"]
        assert world.rows.facts == ["failed-run_1"]
    assert die_at > 8


async def test_a_dead_letter_waits_for_whoever_still_works_in_the_thread(world):
    world.rows.holder = "wrk_other"
    with pytest.raises(ThreadBusy):
        await dead(world)
    assert world.types() == []


async def test_a_dead_letter_whose_run_cannot_be_closed_is_told_once_and_repeated_while_something_is_away(world):
    for error in (RuntimeError("a defect"), InvalidInput("broken")):
        log = CapturingLogger()
        world.log.bounds = failing(error)
        await end_dead_run("run_1", "any", rows=world.rows, tools=world.tools, log=log)
        assert [call.args for call in log.calls] == [("agent.end_dead_run.failed",)]
    world.log.bounds = failing(DependencyUnavailable("away"))
    with pytest.raises(DependencyUnavailable):
        await dead(world)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), LeaseLost("lost"), DependencyUnavailable("away")])
async def test_a_run_that_cannot_be_closed_does_not_keep_the_sweep_from_others(world, error: Exception):
    world.rows.submit("run_2", "And?")
    original, log = world.rows.load, CapturingLogger()

    async def load(tenant: str, run_id: str):
        if run_id == "run_1":
            raise error
        return await original(tenant, run_id)

    world.rows.load = load
    await sweep(rows=world.rows, tools=world.tools, orphan_text_s=0, stale_s=10_000, owned_s=BACKLOG_S, log=log)
    assert world.state.runs["run_2"].end["code"] == "message_expired"
    assert [(call.args[0], call.kwargs["run_id"]) for call in log.calls] == [
        ("agent.close_run.failed", "run_1"),
        ("agent.close_run.done", "run_2"),
    ]


async def test_a_dead_letter_of_a_parked_run_or_of_no_run_changes_nothing(world):
    world.runtime.states = [STARTING]
    await world.deliver()
    before = len(world.log.items)
    await dead(world)
    await dead(world, "evt_of_something_else")
    assert len(world.log.items) == before


async def test_a_text_that_nobody_posted_ends_in_its_thread_too(world):
    log = CapturingLogger()
    for _ in range(2):
        await sweep(rows=world.rows, tools=world.tools, orphan_text_s=0, stale_s=10_000, owned_s=BACKLOG_S, log=log)
    assert world.types() == ["message.user", "run.queued", "run.failed"]
    assert world.state.runs["run_1"].end["code"] == "message_expired"
    assert world.rows.facts == ["failed-run_1"]
    assert [call.kwargs["code"] for call in log.calls] == ["message_expired"]
