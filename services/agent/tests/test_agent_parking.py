"""Runs that wait for their instance are parked: they hold no worker, keep their order, and survive whatever dies."""

from __future__ import annotations

import asyncio
import time

import pytest
from agent_fakes import Crash
from hatchery_agent.domain.folding import RunPhase
from hatchery_agent.domain.waiting import WAITABLE_STATES, look_again_s
from hatchery_agent.handlers.runs import answer_message, resume_run
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.ports import GatewayNotReady, Progress
from hatchery_common.contracts.routes import RouteState

STARTING = GatewayNotReady("starting", "booting")


def ends(world, run_id: str = "run_1") -> list[str]:
    return [kind for kind in world.types(run_id) if kind in ("run.finished", "run.failed")]


async def test_an_instance_that_comes_up_is_waited_for(world):
    world.runtime.states = [GatewayNotReady("starting"), GatewayNotReady("starting")]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")
    await world.resume()
    assert ends(world) == ["run.finished"]
    waits = [i.entry.data for i in world.log.items if i.entry.data.get("phase") == "waiting_for_instance"]
    assert waits == [{"phase": "waiting_for_instance", "state": "starting"}], "told once, not at every try"
    assert world.types().count("run.started") == 1, "the attempt that waited goes on"
    assert world.rows.facts == ["started-run_1-1", "finished-run_1"]


async def test_a_parked_run_holds_neither_a_worker_nor_the_thread(world):
    world.runtime.states = [STARTING]
    async with asyncio.timeout(0.5):
        await world.deliver()
    assert world.rows.holder is None
    assert list(world.rows.due_at) == ["run_1"]
    assert ends(world) == []
    await world.deliver()  # the command once more, as when its acknowledgement was lost
    assert world.fate.names.count("send") == 1, "its row is its job now"


async def test_an_instance_that_does_not_come_up_ends_the_run_in_time(world):
    world.runtime.states = [GatewayNotReady("starting", "booting")] * 50
    began = time.monotonic()
    await world.deliver()
    await world.resume()
    assert world.state.runs["run_1"].end["code"] == "instance_not_running"
    assert "starting" in world.state.runs["run_1"].end["message"]
    assert 0.55 < time.monotonic() - began < 2, "its wait is 0.6 s"


@pytest.mark.parametrize("state", ["stopped", "error", "deleted"])
async def test_an_instance_that_will_not_come_up_ends_the_run_at_once(world, state: str):
    world.runtime.states = [GatewayNotReady(state)]
    await world.deliver()
    end = world.state.runs["run_1"].end
    assert end["code"] == "instance_not_running"
    assert state in end["message"]


@pytest.mark.parametrize("break_after", [None, 2])
async def test_a_machine_that_restarts_is_waited_for(world, break_after: int | None):
    """While it restarts its route is stopping, then starting: nothing says that it will not come back."""
    stages = [GatewayNotReady("stopping"), GatewayNotReady("stopping"), STARTING]
    world.runtime.break_after = break_after
    if break_after is None:
        world.runtime.states = stages
    else:
        original = world.runtime._events

        async def broken(message: str, key: str):
            async for event in original(message, key):
                yield event
            world.runtime.states, world.runtime._events = stages, original

        world.runtime._events = broken
    await world.deliver()
    assert ends(world) == []
    await world.resume(hurry=True)
    assert (ends(world), world.runtime.received) == (["run.finished"], ["Hi"])


@pytest.mark.parametrize(("die_at", "code"), [(None, "instance_not_running"), (17, "interrupted")])
async def test_a_machine_that_is_stopped_ends_the_run_with_its_event(world, die_at: int | None, code: str):
    if die_at is not None:
        assert await world.deliver_and_die(die_at)  # OpenClaw has the turn
    world.runtime.states = [GatewayNotReady("stopping"), GatewayNotReady("stopped")]
    await world.deliver()
    assert ends(world) == []
    await world.rows.wake("tenant-a", "ins_1")
    began = time.monotonic()
    await world.resume()
    assert time.monotonic() - began < 0.2
    assert world.state.runs["run_1"].end["code"] == code


def test_only_states_that_the_proxy_tells_are_waited_in():
    routes = {state.value for state in RouteState}
    assert routes | {"unreachable", "unknown"} >= WAITABLE_STATES


async def test_an_instance_that_gives_up_meanwhile_ends_the_run_with_its_news(world):
    world.runtime.states = [STARTING, GatewayNotReady("error", "no capacity")]
    await world.deliver()
    await world.rows.wake("tenant-a", "ins_1")
    await world.resume()
    assert "error: no capacity" in world.state.runs["run_1"].end["message"]


async def test_a_death_at_any_step_of_waiting_leaves_exactly_one_answer(make_world):
    steps = 0
    for die_at in range(1, 200):
        world = make_world(limits=TurnLimits(turn_s=5, start_s=5, recovery_s=0))
        world.rows.submit("run_1", "Hi")
        unreachable = GatewayNotReady("unreachable")  # looked at soon, without any event
        world.runtime.states = [unreachable, unreachable]
        died = await world.deliver_until_acked(die_at=die_at)
        name = world.fate.names[min(die_at, len(world.fate.names)) - 1]
        assert world.runtime.received == ["Hi"], f"sent twice after a death at {name}"
        assert ends(world) == ["run.finished"], name
        assert world.types().count("message.user") == 1
        assert world.rows.facts.count("finished-run_1") == 1
        if not died:
            break
        steps += 1
    assert steps > 30, "the test reached every step of a run that waits twice"


async def test_deaths_while_waiting_are_not_attempts(make_world):
    world = make_world(max_attempts=2, limits=TurnLimits(turn_s=5, start_s=5, recovery_s=0))
    world.rows.submit("run_1", "Hi")
    world.runtime.states = [STARTING] * 6
    original = world.rows.park

    async def dies(*_: object, **__: object) -> None:
        raise Crash

    world.rows.park = dies
    for _ in range(5):
        with pytest.raises(Crash):
            await world.deliver()
        assert world.rows.due_at == {}
    world.rows.park = original
    await world.deliver()
    await world.resume(hurry=True)
    run = world.state.runs["run_1"]
    assert (run.phase, run.attempt) == (RunPhase.FINISHED, 1)


async def test_deaths_once_the_turn_was_taken_are_attempts(make_world):
    world = make_world(max_attempts=2, limits=TurnLimits(turn_s=5, start_s=5, recovery_s=0))
    world.rows.submit("run_1", "Hi")
    world.runtime.states = [STARTING]
    await world.deliver()
    original = world.rows.checkpoint

    async def dies(*_: object, **__: object) -> None:
        raise Crash

    world.rows.checkpoint = dies
    for _ in range(2):
        await world.rows.wake("tenant-a", "ins_1")
        with pytest.raises(Crash):
            await world.resume()
    world.rows.checkpoint = original
    await world.resume(hurry=True)
    assert world.state.runs["run_1"].end["code"] == "gave_up"


async def test_a_message_behind_a_parked_one_keeps_its_place_and_gets_its_answer(make_world):
    world = make_world(limits=TurnLimits(turn_s=30, start_s=5, recovery_s=0))
    world.rows.submit("run_1", "Hi")
    world.rows.submit("run_2", "And?")
    world.rows.submit("run_3", "Then?")
    world.runtime.states = [STARTING, STARTING, STARTING]
    for run_id in ("run_1", "run_2", "run_3"):
        await world.deliver(run_id)
    assert list(world.rows.due_at) == ["run_1", "run_2", "run_3"]
    assert world.types("run_2") == ["message.user", "run.queued"]
    assert world.rows.runs["run_2"].text is None, "the log holds it"
    await world.rows.wake("tenant-a", "ins_1")
    await world.resume()
    assert world.runtime.received == ["Hi", "And?", "Then?"]
    order = [i.entry.run_id for i in world.log.items if str(i.entry.type) == "run.finished"]
    assert order == ["run_1", "run_2", "run_3"]


async def test_a_run_that_a_younger_command_parks_does_not_take_over_its_cause(world):
    assert await world.deliver_and_die(12)
    world.rows.submit("run_2", "And?")
    world.runtime.states = [STARTING]
    await answer_message(world.delivery("run_2")._replace(correlation_id="op_2"), tools=world.tools)
    causes = {run_id: (row.cause["id"], row.cause["correlation_id"]) for run_id, row in world.rows.runs.items()}
    assert causes == {"run_1": ("run_1", None), "run_2": ("run_2", "op_2")}


async def test_news_that_a_gateway_gives_before_it_takes_a_turn_does_not_begin_the_wait_anew(world):
    async def never_takes_it(*_: object):
        yield Progress("waiting")
        raise GatewayNotReady("unreachable")

    world.runtime._events = never_takes_it
    began = time.monotonic()
    async with asyncio.timeout(10):
        await world.deliver()
        await world.resume()
    assert world.state.runs["run_1"].end["code"] == "instance_not_running"
    assert time.monotonic() - began >= 0.55, "its wait is 0.6 s"


async def test_each_message_of_a_thread_has_its_own_wait(world):
    world.rows.submit("run_2", "And?")
    world.runtime.states = [STARTING] * 50
    await world.deliver("run_1")
    await world.deliver("run_2")
    await world.resume()
    assert [world.state.runs[run].end["code"] for run in ("run_1", "run_2")] == ["instance_not_running"] * 2
    began = [i.entry.at_ms for i in world.log.items if i.entry.data.get("phase") == "waiting_for_instance"]
    assert began[1] - began[0] >= 550


async def test_news_during_a_look_is_not_slept_through(world):
    world.runtime.states = [STARTING]
    original = world.rows.park

    async def slow_park(*args, **kwargs) -> None:
        await world.rows.wake("tenant-a", "ins_1")  # the event comes between the look and the row
        await original(*args, **kwargs)

    world.rows.park = slow_park
    await world.deliver()
    assert await world.rows.due(1), "due at once, not after the pause"


async def test_the_clock_of_the_turn_begins_when_it_is_taken_up(make_world):
    world = make_world(limits=TurnLimits(turn_s=0.4, start_s=0.4, recovery_s=0))
    world.rows.submit("run_1", "Hi")
    world.runtime.states = [STARTING]
    await world.deliver()
    await asyncio.sleep(0.5)  # as long as nobody was there
    await world.resume()
    assert ends(world) == ["run.finished"]


async def test_a_run_that_somebody_has_looked_at_since_is_left_alone(world):
    world.runtime.states = [STARTING]
    await world.deliver()
    row = world.rows.runs["run_1"]
    await resume_run(row, tools=world.tools)  # not due any more
    assert world.fate.names.count("send") == 1


@pytest.mark.parametrize(
    ("state", "waited_s", "woken_s", "accepted", "expected"),
    [
        ("starting", 0.0, None, False, 10.0),
        ("unknown", 100.0, None, False, 10.0),
        ("unreachable", 0.0, None, False, 0.25),
        ("unreachable", 3.0, None, False, 3.0),
        ("unreachable", 100.0, None, False, 10.0),
        ("starting", 100.0, 0.0, False, 0.25),
        ("starting", 100.0, 1.5, False, 1.5),
        ("starting", 100.0, -5.0, False, 0.25),
        ("unreachable", 0.0, 100.0, False, 0.25),
        ("starting", 0.0, None, True, 0.25),
        ("unknown", 2.0, 100.0, True, 2.0),
    ],
)
def test_looks_follow_news_soon_and_are_rare_without(
    state: str, waited_s: float, woken_s: float | None, accepted: bool, expected: float
):
    assert look_again_s(state, waited_s=waited_s, woken_s=woken_s, accepted=accepted) == expected
