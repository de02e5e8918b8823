"""Sweeps end what nobody will answer any more, and nothing that somebody has just taken up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agent_world import World
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.handlers.sweeps import BACKLOG_S, end_dead_run, sweep
from hatchery_agent.ports import GatewayNotReady
from structlog.testing import CapturingLogger

STARTING = GatewayNotReady("starting", "booting")


async def swept(world: World, *, owned_s: float = BACKLOG_S, orphan_text_s: int = 0, stale_s: int = 0) -> list[str]:
    """One round in which everything is old; returns what it reports."""
    log = CapturingLogger()
    rows, tools = world.rows, world.tools
    await sweep(rows=rows, tools=tools, orphan_text_s=orphan_text_s, stale_s=stale_s, owned_s=owned_s, log=log)
    return [call.args[0] for call in log.calls]


def meanwhile(world: World, name: str, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen after the owner has read its list and before it acts on it."""
    original = getattr(world.rows, name)

    async def listed(older_than_s: int):
        found = await original(older_than_s)
        await happens()
        return found

    setattr(world.rows, name, listed)


async def test_a_run_whose_command_was_lost_is_closed(world: World):
    assert await world.deliver_and_die(12)
    assert await swept(world) == ["agent.close_run.done"]
    assert world.state.runs["run_1"].end["code"] == "abandoned"
    await world.deliver()  # its command comes after all
    assert world.types().count("run.failed") == 1
    assert world.runtime.received == []


async def test_after_a_standstill_commands_come_before_sweeps(world: World):
    assert await world.deliver_and_die(12)
    world.rows.submit("run_2", "And?")
    assert await swept(world, owned_s=BACKLOG_S - 1) == []
    await world.deliver()
    await world.deliver("run_2")
    assert {run.phase for run in world.state.runs.values()} == {RunPhase.FINISHED}
    assert await swept(world) == []


async def test_a_run_that_was_parked_meanwhile_is_left_to_its_row(world: World):
    assert await world.deliver_and_die(12)
    world.runtime.states = [STARTING]
    meanwhile(world, "stale", world.deliver)
    assert await swept(world) == []
    await world.resume(hurry=True)
    assert world.state.runs["run_1"].phase is RunPhase.FINISHED


async def test_a_run_that_was_taken_up_meanwhile_is_left_to_its_command(world: World):
    assert await world.deliver_and_die(12)
    meanwhile(world, "stale", lambda: world.deliver_and_die(world.fate.steps + 20))
    assert await swept(world) == []
    assert not world.state.runs["run_1"].ended
    await world.deliver()
    assert world.state.runs["run_1"].phase is RunPhase.FINISHED


async def test_a_text_that_was_logged_meanwhile_is_left_to_its_command(world: World):
    meanwhile(world, "orphans", lambda: world.deliver_and_die(9))
    assert await swept(world, stale_s=100) == []
    assert world.types() == ["message.user", "run.queued"]
    await world.deliver()
    assert world.state.runs["run_1"].phase is RunPhase.FINISHED


async def test_a_run_that_ended_meanwhile_is_not_reported(world: World):
    assert await world.deliver_and_die(12)
    meanwhile(world, "stale", world.deliver)
    assert await swept(world) == []
    assert world.state.runs["run_1"].phase is RunPhase.FINISHED


async def test_a_dead_letter_of_a_run_that_is_parked_meanwhile_ends_nothing(world: World):
    world.runtime.states = [STARTING]
    meanwhile(world, "find", world.deliver)
    log = CapturingLogger()
    await end_dead_run("run_1", "any", rows=world.rows, tools=world.tools, log=log)
    assert log.calls == []
    assert not world.state.runs["run_1"].ended
