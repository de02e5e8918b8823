"""A ready instance in trouble: what makes it degraded, what makes it ready again, and what ends it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from hatchery_common.contracts.gateways import ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    InstanceEvent,
    InstanceMetered,
    InstanceStatus,
    ProvisionInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.contracts.operations import InstanceStepFinished
from hatchery_common.contracts.routes import RouteState
from hatchery_common.errors import DependencyUnavailable
from hatchery_provisioner.reconciler.watching import Watching
from hatchery_provisioner.reconciler.workbench import Workbench
from provisioner_fakes import INSTANCE, World, limits

READY, STOPPED = InstanceStatus.READY, InstanceStatus.STOPPED
DEGRADED, ERROR = InstanceStatus.DEGRADED, InstanceStatus.ERROR
REFUSED = ProbeResponse(ok=False, stage=ProbeStage.HELLO, detail="unauthorized")


async def test_a_controller_that_falls_silent_degrades_its_instance_and_an_answer_mends_it() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.silent = True
        await world.until_status(DEGRADED)
        assert world.row.reason == "controller_silent"
        world.controllers.silent = False
        await world.until_status(READY)
        assert world.row.reason is None


async def test_a_silence_counts_for_the_boot_that_it_was_seen_of() -> None:
    async with World(limits=limits(silent_s=30.0)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.die()
        bench = Workbench(world.tools(), INSTANCE, world.store.epoch)
        watching = Watching(bench)
        world.controllers.silent = True

        async def watched_for(seconds: float) -> InstanceStatus:
            bench.wake.set()  # else it pauses
            assert world.row.machine is not None
            await watching.watch(world.row, world.row.machine)
            world.clock.ahead += timedelta(seconds=seconds)
            return world.row.status

        await watched_for(60)
        world.store.rows[INSTANCE] = world.row.with_machine(boot_id="boot_next")
        assert [await watched_for(20) for _ in range(3)] == [READY, READY, DEGRADED]


async def test_a_start_on_an_instance_whose_controller_stays_silent_ends() -> None:
    async with World(limits=limits(degraded_s=0.5)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.silent = True
        await world.wish(StartInstance)
        await world.until_settled(ERROR)
        assert ("op_2", "failed", "controller_silent") in world.store.ended()
        await world.until(lambda: not any(machine.running for machine in world.driver.machines.values()))


async def test_a_moment_of_silence_is_nothing() -> None:
    async with World(limits=limits(silent_s=30.0)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.silent = True
        await world.wish(StartInstance)
        await asyncio.sleep(0.3)
        assert world.row.status is READY
        world.controllers.silent = False
        await world.until_settled(READY)


async def test_a_degraded_instance_is_ready_again_only_after_a_probe() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(DEGRADED)
        asked = len(world.prober.requests)
        world.prober.answers = [REFUSED, DependencyUnavailable("nobody answers")]
        world.controllers.set("ready")
        await world.until(lambda: world.row.reason == "probe_failed")
        assert world.row.status is DEGRADED
        assert "unauthorized" in (world.row.message or "")
        await world.until_status(READY)
        assert len(world.prober.requests) == asked + 3
        assert world.prober.requests[-1].route_version == world.row.route_version
        assert (world.row.reason, world.row.message) == (None, None)


async def test_a_gateway_whose_owner_cannot_reach_it_ends_at_the_deadline_of_degraded() -> None:
    async with World(limits=limits(degraded_s=0.5)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(DEGRADED)
        world.prober.answers = [REFUSED] * 100
        world.controllers.set("ready")
        await world.until_status(ERROR)
        assert world.row.reason == "gateway_unhealthy"


async def test_a_boot_that_was_called_ended_in_error_goes_on_from_its_total() -> None:
    async with World(limits=limits(meter_s=0.1, backoff_first_s=0.3, max_attempts=9)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.until(lambda: any(boot.counted_ms >= 100 for boot in world.store.boots.values()))
        hidden = dict(world.driver.machines)
        world.driver.machines.clear()
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: any(boot.final for boot in world.store.boots.values()))
        (ended,) = world.store.boots.values()
        world.driver.machines |= hidden
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: not any(boot.final for boot in world.store.boots.values()))
        (again,) = world.store.boots.values()
        assert again.counted_ms >= ended.counted_ms
        await world.until_settled(READY)
    readings = [one.seconds_total for one in world.store.told(InstanceMetered)]
    assert readings == sorted(readings)


async def test_a_machine_that_keeps_ending_while_it_is_awaited_is_told_as_lost() -> None:
    """From the second time on its row holds the end of an earlier pause."""
    async with World(limits=limits(max_attempts=9)) as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        for boot in (1, 2, 3):
            await world.until(lambda boot=boot: [one.boots for one in world.driver.machines.values()] == [boot])
            await world.until(lambda: world.row.machine is not None and world.row.machine.boot_id is not None)
            await asyncio.sleep(0.05)
            (machine,) = world.driver.machines.values()
            machine.running = False
            world.controllers.set("live")
        world.controllers.set("ready")
        await world.until_settled(READY)
    assert {reason for _, reason in world.store.failed_steps()} == {"machine_lost"}
    failed = [one for one in world.store.told(InstanceStepFinished) if not one.ok]
    assert [(one.step, one.log_tail) for one in failed] == [("wait_ready", ("the last line",))] * len(failed)


async def test_a_start_during_our_own_stop_is_no_crash() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)

        async def changed_mind() -> None:
            world.driver.after.pop("stop")
            await world.wish(StartInstance)

        world.driver.after["stop"] = changed_mind
        await world.wish(StopInstance)
        await world.until(lambda: [one.boots for one in world.driver.machines.values()] == [2])
        await world.until_settled(READY)
        assert (world.row.attempts, world.row.not_before_ms) == (0, None)
    assert "machine_lost" not in {event.state.reason for event in world.store.told(InstanceEvent)}


async def test_what_outlives_its_machine_is_stopped_before_it_is_called_stopped() -> None:
    async with World(limits=limits(backoff_first_s=5)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()
        machine.running, machine.headless = False, True
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: world.row.not_before_ms is not None)
        assert "stop" not in world.driver.calls
        assert world.row.route_state is RouteState.STOPPED
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        assert (world.driver.calls.count("stop"), machine.headless) == (1, False)


async def test_what_outlives_its_machine_is_stopped_before_the_next_start() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()
        machine.running, machine.headless = False, True
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: machine.boots == 2)
        calls = [name for name in world.driver.calls if name in ("start", "stop")]
        assert (calls, machine.headless) == (["start", "stop", "start"], False)
        await world.until_settled(READY)
