"""The log keeps the order in which a thread's messages were posted, whatever order their commands come in."""

from __future__ import annotations

from agent_world import World
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.ports import GatewayNotReady

IDS = ["run_1", "run_2", "run_3"]
STARTING = GatewayNotReady("starting", "booting")


def three(make_world: type[World]) -> World:
    """A thread with three messages, each known by its text."""
    world = make_world()
    for run_id, text in zip(IDS, ("One", "Two", "Three"), strict=True):
        world.rows.submit(run_id, text)
    return world


def check(world: World, died_at: str) -> None:
    state = world.state
    assert list(state.runs) == IDS, died_at
    assert {run.phase for run in state.runs.values()} == {RunPhase.FINISHED}, died_at
    assert world.runtime.received == ["One", "Two", "Three"], died_at
    assert sorted(fact for fact in world.rows.facts if not fact.startswith("started")) == [
        f"finished-{run_id}" for run_id in IDS
    ]
    assert [world.types(run_id).count("message.user") for run_id in IDS] == [1, 1, 1]


async def test_a_newer_message_that_comes_first_is_logged_after_those_that_a_dead_process_held(make_world: type[World]):
    for die_at in range(1, 40):
        world = three(make_world)
        if not await world.deliver_and_die(die_at):
            break
        for run_id in reversed(IDS):  # what the dead process held is redelivered last
            await world.deliver(run_id)
        check(world, world.fate.names[die_at - 1])
    assert die_at > 20


async def test_its_worker_may_die_too(make_world: type[World]):
    for die_at in range(13, 80):
        world = three(make_world)
        assert await world.deliver_and_die(12)
        if not await world.deliver_and_die(12 + die_at, "run_3"):
            break
        for run_id in reversed(IDS):
            await world.deliver(run_id)
        check(world, world.fate.names[12 + die_at - 1])
    assert die_at > 50


async def test_the_order_is_kept_behind_a_message_that_waits(make_world: type[World]):
    world = three(make_world)
    world.runtime.states = [STARTING] * 3
    await world.deliver("run_1")
    await world.deliver("run_3")
    assert list(world.state.runs) == IDS
    await world.deliver("run_2")
    assert sorted(world.rows.due_at) == IDS
    await world.resume(hurry=True)
    check(world, "none")
