"""A ready instance in trouble: what makes it degraded, what makes it ready again, and what ends it."""

from __future__ import annotations

import asyncio

from hatchery_common.contracts.gateways import ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import InstanceMetered, InstanceStatus, ProvisionInstance, StartInstance
from hatchery_common.errors import DependencyUnavailable
from provisioner_fakes import INSTANCE, World, limits

READY, DEGRADED, ERROR = InstanceStatus.READY, InstanceStatus.DEGRADED, InstanceStatus.ERROR
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
