"""Intent to observation on fakes: the whole life, and each way in which a driver can misbehave."""

from __future__ import annotations

import asyncio
import time

import pytest
from hatchery_common.contracts.gateways import ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceMetered,
    InstanceStatus,
    InstanceStepFinished,
    InstanceStepStarted,
    ProvisionInstance,
    RestartInstance,
    RouteState,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from hatchery_common.errors import DependencyUnavailable
from hatchery_provisioner.domain.errors import DriverAmbiguous, DriverCapacity, DriverPermanent, DriverTransient
from hatchery_provisioner.domain.instance import MachineStage, Power
from hatchery_provisioner.ports import MachineRef
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


async def test_transient_failures_are_repeated_and_never_recreate() -> None:
    async with World() as world:
        world.driver.before["ensure"] = raising(DriverTransient("x", "not now"), DriverCapacity("no_free_port", "full"))
        world.driver.before["start"] = raising(DriverTransient("x", "not now"))
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        assert len(world.driver.machines) == 1
        assert world.store.machines_seen == set(world.driver.machines)
        assert "delete" not in world.driver.calls


async def test_ambiguous_create_and_start_never_make_two() -> None:
    """The effect happens and the answer is lost: a driver that dies after the effect."""
    async with World() as world:
        lost = DriverAmbiguous("driver_timeout", "lost")
        world.driver.after["ensure"] = raising(lost)
        world.driver.after["start"] = raising(lost)
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        assert len(world.driver.machines) == 1
        assert [machine.boots for machine in world.driver.machines.values()] == [1]


@pytest.mark.parametrize("where", ["prepare_image", "ensure", "start"])
async def test_permanent_failure_names_reason_and_remedy(where: str) -> None:
    async with World() as world:
        world.driver.before[where] = raising(DriverPermanent("disk_full", "no space left"))
        operation = await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "disk_full"
        assert "no space left; remedy: free space" in (world.row.message or "")
        assert world.store.ended() == [(operation, "failed", "disk_full")]
        failed = [one for one in world.store.told(InstanceStepFinished) if not one.ok]
        assert [(one.reason, one.log_tail) for one in failed] == [("disk_full", ("the last line",))]
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)


async def test_config_rejected_ends_in_error_with_the_gateways_own_text() -> None:
    async with World() as world:
        world.controllers.set("failed", "config_rejected", "Unrecognized key: gateway.nonsense")
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        await world.until(lambda: not any(machine.running for machine in world.driver.machines.values()))
        assert "gateway.nonsense" in (world.row.message or "")
        await world.until(lambda: world.row.next_at_ms is None)
        assert world.row.route_state is RouteState.STOPPED
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED)


async def test_a_gateway_that_never_gets_ready_ends_in_error() -> None:
    async with World(limits=limits(start_s=0.4)) as world:
        world.controllers.set("live", message="still loading")
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "start_deadline"
        assert "as far as live" in (world.row.message or "")
        assert ("wait_ready", "start_deadline") in world.store.failed_steps()
        world.controllers.set("ready")
        await world.wish(StartInstance)
        await world.until_settled(READY)


async def test_a_data_plane_that_never_agrees_ends_in_error() -> None:
    async with World(limits=limits(start_s=0.5)) as world:
        no = ProbeResponse(ok=False, stage=ProbeStage.HELLO, detail="401")
        world.prober.answers = [no] * 1000
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "probe_failed"
        assert "401" in (world.row.message or "")


async def test_crash_loop_backs_off_and_ends_in_error() -> None:
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)

        async def crash() -> None:
            while world.row.status is not ERROR:
                for machine in world.driver.machines.values():
                    machine.running = False
                await asyncio.sleep(0.02)

        await asyncio.wait_for(crash(), 5)
        assert world.row.reason == "crash_loop"
        boots = [machine.boots for machine in world.driver.machines.values()]
        assert boots == [world.limits.max_attempts + 1]


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


async def test_lying_stop_and_lying_delete_are_believed_only_when_seen() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()

        async def still_running() -> None:
            machine.running = True

        world.driver.after["stop"] = still_running
        await world.wish(StopInstance)
        await world.until(lambda: world.driver.calls.count("stop") >= 2)
        assert world.row.status is InstanceStatus.STOPPING
        del world.driver.after["stop"]
        await world.until_settled(STOPPED)

        async def still_there() -> None:
            world.driver.machines[machine.spec.machine_id] = machine

        world.driver.after["delete"] = still_there
        await world.wish(DeleteInstance)
        await world.until(lambda: world.driver.calls.count("delete") >= 2)
        assert world.row.status is InstanceStatus.DELETING
        assert world.driver.storage
        del world.driver.after["delete"]
        await world.until_settled(DELETED)


async def test_unknown_is_waited_out_and_ends_nothing() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.driver.before["observe"] = raising(*[DriverTransient("host_refused", "no answer")] * 3)
        world.controllers.set("ready")
        await world.until_status(InstanceStatus.DEGRADED)
        assert world.row.machine is not None
        assert world.row.machine.power is Power.UNKNOWN
        await world.until_status(READY, 8)
        assert (world.driver.calls.count("start"), world.driver.calls.count("stop")) == (1, 0)


async def test_a_slow_driver_is_cut_off_and_found_again() -> None:
    async with World(limits=limits(call_s=0.1)) as world:

        async def slow() -> None:
            await asyncio.sleep(30)

        world.driver.after["start"] = slow
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        assert [machine.boots for machine in world.driver.machines.values()] == [1]
        assert ("start_gateway", "driver_timeout") in world.store.failed_steps()


async def test_a_driver_that_never_works_ends_in_error_and_can_be_deleted() -> None:
    async with World(limits=limits(max_attempts=2)) as world:
        world.driver.before["start"] = raising(*[DriverTransient("host_refused", "never")] * 50)
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "host_refused"
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED)


async def test_a_ghost_is_created_again_on_its_storage() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.driver.machines.clear()
        world.controllers.set("ready")
        await world.until(lambda: bool(world.driver.machines) and world.row.status is READY)
        assert world.store.machines_seen == set(world.driver.machines)


async def test_lost_storage_is_an_error_and_never_an_empty_one() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        world.driver.machines.clear()
        world.driver.storage.clear()
        world.controllers.set("ready")
        await world.until_status(ERROR)
        assert world.row.reason == "storage_missing"
        assert not world.driver.storage


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


CUTS = ["prepare_image", "ensure", "start", "observe", "stop", "delete", "delete_storage"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("cut", CUTS)
async def test_the_owner_dies_around_each_driver_call(cut: str, moment: str) -> None:
    """Whatever call it dies in, before or after its effect, the next owner ends with one machine, then with none."""
    async with World() as world:
        reached = asyncio.Event()

        async def die() -> None:
            reached.set()
            await asyncio.sleep(60)

        hooks = world.driver.before if moment == "before" else world.driver.after
        hooks[cut] = die
        await world.wish(ProvisionInstance)
        if cut in ("stop", "delete", "delete_storage"):
            await world.until_settled(READY)
            await world.wish(DeleteInstance)
        await asyncio.wait_for(reached.wait(), 5)
        await world.die()
        del hooks[cut]
        await world.revive()
        if cut not in ("stop", "delete", "delete_storage"):
            await world.until_settled(READY)
            assert [machine.boots for machine in world.driver.machines.values()] == [1]
            await world.wish(DeleteInstance)
        await world.until_settled(DELETED)
        assert not world.driver.machines
        assert not world.driver.storage
        assert world.driver.most_running == 1
    assert [(name, how) for name, how, _ in world.store.ended()] == [("op_1", "finished"), ("op_2", "finished")]


async def test_a_frozen_owner_writes_nothing_after_its_epoch() -> None:
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        world.store.epoch += 1
        frozen = world._task
        assert frozen is not None
        world.controllers.set("ready")
        with pytest.raises(DependencyUnavailable):
            await asyncio.wait_for(frozen, 5)
        assert world.row.status is InstanceStatus.STARTING
        world._task = None


async def test_a_running_instance_survives_a_new_owner_untouched() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.revive()
        await asyncio.sleep(0.2)
        assert world.row.status is READY
        assert world.driver.calls.count("start") == 1
        assert world.row.machine is not None
        assert world.row.machine.stage is MachineStage.CREATED


async def test_a_broken_lane_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        broken = raising(*[RuntimeError("bug")] * 100)  # type: ignore[list-item]
        world.driver.before["prepare_image"] = broken
        await world.wish(ProvisionInstance)
        await world.until(lambda: "prepare_image" in world.driver.calls)
        world.driver.before.clear()
        other = ProvisionInstance(tenant=TENANT, instance_id="ins_2", operation_id="op_o", generation=1)
        await world.deliver(delivered(other))
        await world.until(lambda: world.store.rows["ins_2"].status is READY)


async def test_orphans_are_reported_then_removed() -> None:
    from hatchery_provisioner.ports import MachineSpec
    from hatchery_provisioner.reconciler import Sweeper
    from prometheus_client import CollectorRegistry

    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.driver.ensure(MachineSpec("ins_stranger", TENANT, "mch_stranger", 1, 1))
        sweeper = Sweeper(world.tools(), CollectorRegistry())
        assert [one.machine_id for one in await sweeper.sweep()] == ["mch_stranger"]
        assert "mch_stranger" in world.driver.machines
        await sweeper.sweep()
        assert "mch_stranger" not in world.driver.machines
        assert "ins_stranger" in world.driver.storage, "data without a row is somebody's"
        assert world.row.machine is not None
        assert world.row.machine.machine_id in world.driver.machines
        seen = await world.driver.observe(MachineRef(INSTANCE, world.row.machine.machine_id))
        assert seen.phase.value == "running"


async def test_a_machine_that_runs_although_its_instance_is_stopped_is_stopped() -> None:
    from hatchery_provisioner.reconciler import Sweeper
    from prometheus_client import CollectorRegistry

    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        await world.until(lambda: world.row.next_at_ms is None)
        (machine,) = world.driver.machines.values()
        machine.running = True  # the late effect of an owner that was frozen in its midst
        machine.boots += 1
        sweeper = Sweeper(world.tools(), CollectorRegistry())
        await sweeper.sweep(world.store.epoch)
        assert world.row.next_at_ms is None, "at first sight it is only remembered"
        await sweeper.sweep(world.store.epoch)
        await world.until(lambda: not machine.running and world.row.next_at_ms is None)
        assert world.row.status is STOPPED


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
