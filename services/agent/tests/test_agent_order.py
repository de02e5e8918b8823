"""Commands of a thread that come in another order than its messages were posted, or never: no answer twice, none unasked."""

from __future__ import annotations

from agent_world import World
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.handlers.sweeps import BACKLOG_S, sweep
from hatchery_agent.ports import GatewayNotReady
from structlog.testing import CapturingLogger

IDS = ["run_1", "run_2", "run_3"]
TEXTS = dict(zip(IDS, ("One", "Two", "Three"), strict=True))
STARTING = GatewayNotReady("starting", "booting")


def three(make_world: type[World]) -> World:
    """A thread with three messages, each known by its text."""
    world = make_world()
    for run_id, text in TEXTS.items():
        world.rows.submit(run_id, text)
    return world


def check(world: World, died_at: str) -> None:
    """Each message is in the log once and was answered once, in the order of the log."""
    state = world.state
    assert sorted(state.runs) == IDS, died_at
    assert {run.phase for run in state.runs.values()} == {RunPhase.FINISHED}, died_at
    assert world.runtime.received == [TEXTS[run_id] for run_id in state.runs], died_at
    assert sorted(fact for fact in world.rows.facts if not fact.startswith("started")) == [
        f"finished-{run_id}" for run_id in IDS
    ]
    assert [world.types(run_id).count("message.user") for run_id in IDS] == [1, 1, 1]


async def test_only_messages_whose_command_came_are_answered(make_world: type[World]):
    world = three(make_world)  # run_1 was submitted, and whoever was to post it died
    await world.deliver("run_2")
    await world.deliver("run_3")
    assert list(world.state.runs) == ["run_2", "run_3"]
    assert world.runtime.received == ["Two", "Three"]
    assert world.rows.runs["run_1"].text == "One"
    log = CapturingLogger()
    await sweep(rows=world.rows, tools=world.tools, orphan_text_s=0, stale_s=0, owned_s=BACKLOG_S, log=log)
    assert world.state.runs["run_1"].end["code"] == "message_expired"
    assert world.runtime.received == ["Two", "Three"]


async def test_commands_that_a_dead_process_held_come_last_and_are_answered_once(make_world: type[World]):
    for die_at in range(1, 40):
        world = three(make_world)
        if not await world.deliver_and_die(die_at):
            break
        for run_id in reversed(IDS):
            await world.deliver(run_id)
        check(world, world.fate.names[die_at - 1])
    assert die_at > 20


async def test_the_worker_of_a_newer_message_may_die_too(make_world: type[World]):
    for die_at in range(13, 80):
        world = three(make_world)
        assert await world.deliver_and_die(12)
        if not await world.deliver_and_die(12 + die_at, "run_3"):
            break
        for run_id in reversed(IDS):
            await world.deliver(run_id)
        check(world, world.fate.names[12 + die_at - 1])
    assert die_at > 40


async def test_those_behind_a_message_that_waits_keep_the_order_of_the_log(make_world: type[World]):
    world = three(make_world)
    world.runtime.states = [STARTING] * 3
    for run_id in ("run_1", "run_3", "run_2"):
        await world.deliver(run_id)
    assert sorted(world.rows.due_at) == IDS
    await world.resume(hurry=True)
    check(world, "none")
