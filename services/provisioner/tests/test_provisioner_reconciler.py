"""Intent to observation on fakes: the whole life, and wishes in the midst of it."""

from __future__ import annotations

import asyncio
import time

from hatchery_common.contracts.gateways import ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceMetered,
    InstanceStatus,
    ProvisionInstance,
    RestartInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from hatchery_common.contracts.operations import InstanceStepFinished, InstanceStepStarted
from hatchery_common.contracts.routes import RouteState
from hatchery_common.errors import DependencyUnavailable
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.instance import Power
from provisioner_fakes import INSTANCE, TENANT, World, delivered, limits, raising

READY, STOPPED, ERROR, DELETED = (
    InstanceStatus.READY,
    InstanceStatus.STOPPED,
    InstanceStatus.ERROR,
    InstanceStatus.DELETED,
)


def routes(world: World) -> list[str]:
    return [route.state.value for route in world.store.routes]


async def test_the_whole_life() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        first = world.row.machine
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        await world.wish(StartInstance)
        await world.until_settled(READY)
        assert world.row.machine is not None
        assert first is not None
        assert world.row.machine.machine_id == first.machine_id
        await world.wish(RestartInstance)
        await world.until_settled(READY)
        assert world.row.machine.machine_id != first.machine_id
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED)
    assert world.store.statuses() == [
        *("provisioning", "starting", "ready", "stopping", "stopped", "starting", "ready"),
        *("restarting", "ready", "deleting", "deleted"),
    ]
    assert [(name, how) for name, how, _ in world.store.ended()] == [(f"op_{n}", "finished") for n in range(1, 6)]
    assert not world.driver.machines
    assert not world.driver.storage
    assert world.driver.most_running == 1
    versions = [route.route_version for route in world.store.routes]
    assert versions == sorted(set(versions))
    assert routes(world) == [
        *("starting", "running", "stopping", "stopped", "starting", "running"),
        *("stopping", "starting", "running", "stopping", "gone"),
    ]


async def test_steps_are_told_with_durations() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
    steps = ["prepare", "create_machine", "start_gateway", "wait_ready", "probe"]
    assert [one.step for one in world.store.told(InstanceStepStarted)] == steps
    assert [(one.step, one.ok) for one in world.store.told(InstanceStepFinished)] == [(name, True) for name in steps]
    assert {one.operation_id for one in world.store.told(InstanceStepFinished)} == {"op_1"}


async def test_ready_only_after_controller_and_probe() -> None:
    async with World() as world:
        world.controllers.set("live")
        refusal = ProbeResponse(ok=False, stage=ProbeStage.ROUTE, detail="no route yet")
        world.prober.answers = [refusal, DependencyUnavailable("nobody answers"), refusal]
        await world.wish(ProvisionInstance)
        await world.until(lambda: world.row.route_state is RouteState.STARTING)
        await asyncio.sleep(0.1)
        assert not world.prober.requests
        assert world.row.status is InstanceStatus.STARTING
        world.controllers.set("ready")
        await world.until_settled(READY)
        assert len(world.prober.requests) == 4
        assert world.row.last_ready_at_ms is not None
        assert world.prober.requests[-1].route_version == world.row.route_version - 1


async def test_each_operation_ends_once_when_wishes_pile_up() -> None:
    async with World() as world:
        world.controllers.set("live")
        for kind in (ProvisionInstance, StopInstance, StartInstance, RestartInstance, StopInstance, StartInstance):
            await world.wish(kind)
        world.controllers.set("ready")
        await world.until_settled(READY)
        for delivery in list(world.sent):
            await world.deliver(delivery)
    assert sorted((name, how) for name, how, _ in world.store.ended()) == [
        *((f"op_{number}", "superseded") for number in range(1, 6)),
        ("op_6", "finished"),
    ]


async def test_start_on_a_ready_instance_finishes_at_once() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.wish(StartInstance)
        await world.until_settled(READY)
        assert world.driver.calls.count("start") == 1
        assert world.store.statuses() == ["provisioning", "starting", "ready"]


async def test_a_stop_while_backing_off_stays_stopped() -> None:
    """The start fails and backs off, a stop comes, then the old start again and a stale wake."""
    async with World(limits=limits(backoff_first_s=5)) as world:
        world.driver.before["start"] = raising(DriverTransient("host_refused", "busy"))
        await world.wish(ProvisionInstance)
        await world.until(lambda: world.row.not_before_ms is not None)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        await world.deliver(world.sent[0])
        late = StartInstance(tenant=TENANT, instance_id=INSTANCE, operation_id="op_late", generation=1)
        await world.deliver(delivered(late))
        now_ms = world.row.updated_at_ms + 60_000
        for generation in (1, 2):
            wake = WakeInstance(tenant=TENANT, instance_id=INSTANCE, generation=generation, not_after_ms=now_ms)
            await world.deliver(delivered(wake))
        await asyncio.sleep(0.2)
        assert world.row.status is STOPPED
        assert world.driver.calls.count("start") == 1
        assert not any(machine.running for machine in world.driver.machines.values())
    assert ("op_late", "superseded", "newer_wish") in world.store.ended()


async def test_a_stop_that_overtakes_its_provision_wins() -> None:
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        await world.until_settled(STOPPED)
        await world.wish(ProvisionInstance, generation=1)
        await asyncio.sleep(0.2)
        assert world.row.status is STOPPED
        assert not world.driver.calls
        await world.wish(StartInstance, generation=3)
        await world.until_settled(READY)
    assert [(name, how) for name, how, _ in world.store.ended()] == [
        *(("op_1", "finished"), ("op_2", "superseded"), ("op_3", "finished")),
    ]


async def test_only_its_own_tenant_wakes_an_instance() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        world.store.rows[INSTANCE] = world.row.evolve(stopped_by="policy")
        for tenant, status in (("tenant-b", STOPPED), (TENANT, READY)):
            wake = WakeInstance(tenant=tenant, instance_id=INSTANCE, generation=2, not_after_ms=2**50)
            await world.deliver(delivered(wake))
            await asyncio.sleep(0.1)
            await world.until_status(status)


async def test_delete_during_a_hanging_driver_call_acts_at_its_end() -> None:
    async with World(limits=limits(call_s=0.5)) as world:
        hanging = asyncio.Event()
        world.driver.before["start"] = hanging.wait  # type: ignore[assignment]
        await world.wish(ProvisionInstance)
        await world.until(lambda: "start" in world.driver.calls)
        began = time.monotonic()
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED)
        assert time.monotonic() - began < 0.5 + 2.0
        assert not world.driver.machines
    assert [(name, how) for name, how, _ in world.store.ended()] == [("op_1", "superseded"), ("op_2", "finished")]


async def test_stop_during_start_is_not_called_stopped_before_it_is_seen() -> None:
    async with World() as world:
        release = asyncio.Event()
        world.driver.after["start"] = release.wait  # type: ignore[assignment]
        await world.wish(ProvisionInstance)
        await world.until(lambda: "start" in world.driver.calls)
        await world.wish(StopInstance)
        assert world.row.status is InstanceStatus.STOPPING
        release.set()
        await world.until_settled(STOPPED)
        assert not any(machine.running for machine in world.driver.machines.values())


async def test_metering_is_cumulative_and_final() -> None:
    async with World(limits=limits(meter_s=0.1)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await asyncio.sleep(1.2)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
    readings = world.store.told(InstanceMetered)
    totals = [one.seconds_total for one in readings]
    assert totals == sorted(totals)
    assert [one.final for one in readings].count(True) == 1
    assert readings[-1].final
    assert readings[-1].seconds_total >= 1
    assert len({one.boot_id for one in readings}) == 1


async def test_degraded_and_back_and_the_deadline_of_degraded() -> None:
    async with World(limits=limits(degraded_s=0.4)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(InstanceStatus.DEGRADED)
        world.controllers.set("ready")
        await world.until_status(READY)
        assert world.row.reason is None
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(ERROR)
        assert world.row.reason == "gateway_unhealthy"


async def test_a_ready_machine_that_dies_is_started_again() -> None:
    async with World(limits=limits(healthy_s=0.0)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        for machine in world.driver.machines.values():
            machine.running = False
        await world.until(lambda: [one.boots for one in world.driver.machines.values()] == [2])
        await world.until_status(READY)
        finals = [one for one in world.store.told(InstanceMetered) if one.final]
        assert len(finals) == 1


async def test_a_machine_that_ended_by_itself_takes_its_route_with_it() -> None:
    async with World(limits=limits(backoff_first_s=0.5)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()
        machine.running = False
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: world.row.machine is not None and world.row.machine.power is Power.OFF)
        assert world.store.routes[-1].state is RouteState.STOPPED
        assert "start" not in world.driver.calls[-1]
        await world.until_status(READY)
        assert world.store.routes[-1].state is RouteState.RUNNING


async def test_an_operation_ends_once_under_however_many_messages_it_comes() -> None:
    async with World() as world:
        for kind in (ProvisionInstance, StopInstance, StartInstance):
            await world.wish(kind)
        await world.until_settled(READY)
        for delivery in list(world.sent):
            await world.deliver(delivered(delivery.message))  # the same wish, a new id
        late = StopInstance(tenant=TENANT, instance_id=INSTANCE, operation_id="op_late", generation=1)
        for _ in range(2):
            await world.deliver(delivered(late))
        stolen = StopInstance(tenant="tenant-b", instance_id=INSTANCE, operation_id="op_4", generation=9)
        await world.deliver(delivered(stolen))
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
    assert [(name, how) for name, how, _ in world.store.ended()] == [
        *(("op_1", "superseded"), ("op_2", "superseded"), ("op_3", "finished"), ("op_late", "superseded")),
        *(("op_4", "failed"), ("op_4", "finished")),  # another tenant's operation is another one, whatever its name
    ]


async def test_routes_say_which_users_are_the_machines() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        opened = [(route.endpoint_uid, route.controller_uid) for route in world.store.routes]
        assert opened == [(71, 72)] * len(opened)
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED)
    assert (world.store.routes[-1].endpoint_uid, world.store.routes[-1].controller_uid) == (None, None)
