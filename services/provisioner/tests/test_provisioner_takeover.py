"""A new owner after a time without one: what was to end in time is not called late for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from hatchery_common.contracts.instances import InstanceEvent, InstanceStatus, ProvisionInstance, StopInstance
from hatchery_common.contracts.operations import InstanceStepFinished
from provisioner_fakes import World, limits

READY, STOPPED, ERROR, DEGRADED = (
    InstanceStatus.READY,
    InstanceStatus.STOPPED,
    InstanceStatus.ERROR,
    InstanceStatus.DEGRADED,
)
AWAY = timedelta(hours=1)


async def test_a_start_that_a_down_interrupted_is_made_after_the_next_up() -> None:
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        await world.die()
        for machine in world.driver.machines.values():
            machine.running = False
        world.clock.ahead = AWAY
        world.controllers.set("ready")
        await world.revive()
        await world.until_settled(READY)
        assert ERROR.value not in world.store.statuses()
        assert world.store.ended() == [("op_1", "finished", None)]


async def test_the_new_deadline_is_told_and_ends_a_start_that_takes_too_long_again() -> None:
    async with World(limits=limits(start_s=0.6)) as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        await world.die()
        before = world.row.deadline_ms
        world.clock.ahead = AWAY
        await world.revive()
        await world.until(lambda: world.row.deadline_ms != before)
        assert before is not None
        assert (world.row.deadline_ms or 0) >= before + int(AWAY.total_seconds() * 1000)
        assert world.store.told(InstanceEvent)[-1].state.deadline_ms == world.row.deadline_ms
        await world.until_settled(ERROR)
        assert world.row.reason == "start_deadline"
        (failed,) = [one for one in world.store.told(InstanceStepFinished) if not one.ok]
        assert (failed.step, failed.log_tail) == ("wait_ready", ("the last line",)), "the remedy sends people there"


async def test_a_gateway_that_got_ready_without_an_owner_is_taken_over() -> None:
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        await world.die()
        world.clock.ahead = AWAY
        world.controllers.set("ready")
        await world.revive()
        await world.until_settled(READY)
        assert world.driver.calls.count("start") == 1


async def test_a_stop_without_an_owner_is_not_made_a_kill() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        reached = asyncio.Event()

        async def die() -> None:
            reached.set()
            await asyncio.sleep(60)

        world.driver.before["stop"] = die
        await world.wish(StopInstance)
        await asyncio.wait_for(reached.wait(), 5)
        await world.die()
        world.driver.before.clear()
        world.driver.graces.clear()
        world.clock.ahead = AWAY
        await world.revive()
        await world.until_settled(STOPPED)
        assert world.driver.graces == [world.limits.stop_grace_s]


async def test_a_degraded_instance_has_its_time_to_recover_when_its_owner_comes_back() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(DEGRADED)
        await world.die()
        world.clock.ahead = AWAY
        await world.revive()
        await asyncio.sleep(0.3)
        assert world.row.status is DEGRADED
        world.controllers.set("ready")
        await world.until_status(READY)


async def test_one_owner_gives_an_instance_its_time_once() -> None:
    """A lane that is started again, as after a fault, goes on with what is left."""
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        await world.revive()
        await world.until(lambda: "observe" in world.driver.calls)
        await asyncio.sleep(0.1)
        before = world.row.deadline_ms
        (lane, task) = next(iter(world.reconciler._lanes.values()))
        task.cancel()
        await world.until(lambda: lane not in [one for one, _ in world.reconciler._lanes.values()])
        await asyncio.sleep(0.1)
        assert world.row.deadline_ms == before
