"""Each way in which a driver, a controller or the data plane can misbehave, and where the instance ends up."""

from __future__ import annotations

import asyncio

import pytest
from hatchery_common.contracts.gateways import ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceStatus,
    ProvisionInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.contracts.operations import InstanceStepFinished
from hatchery_common.contracts.routes import RouteState
from hatchery_provisioner.domain.errors import DriverAmbiguous, DriverCapacity, DriverPermanent, DriverTransient
from hatchery_provisioner.domain.instance import Power
from provisioner_fakes import World, limits, raising

READY, STOPPED, ERROR, DELETED = (
    InstanceStatus.READY,
    InstanceStatus.STOPPED,
    InstanceStatus.ERROR,
    InstanceStatus.DELETED,
)


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


async def test_what_machines_run_may_be_gone_at_the_start_of_an_existing_one() -> None:
    async with World() as world:
        world.driver.before["prepare_image"] = raising(
            None, None, DriverPermanent("openclaw_not_installed", "not there")
        )
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        await world.wish(StartInstance)
        await world.until_settled(ERROR)
        assert world.store.ended()[-1] == ("op_3", "failed", "openclaw_not_installed")
        assert world.driver.calls.count("start") == 1
        await world.wish(StartInstance)
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


async def test_a_machine_that_stays_out_of_sight_ends_in_error_and_is_stopped_once_it_is_seen() -> None:
    async with World(limits=limits(degraded_s=0.3)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        hidden = raising(*[DriverTransient("host_refused", "no answer")] * 1000)
        world.driver.before |= {"observe": hidden, "stop": hidden}
        world.controllers.set("ready")
        await world.until_status(InstanceStatus.DEGRADED)
        await world.until_status(ERROR)
        assert world.row.reason == "machine_unknown"
        assert "no answer; remedy: see what the driver reports" in (world.row.message or "")
        world.driver.before.clear()
        await world.until(lambda: not any(machine.running for machine in world.driver.machines.values()), 8)
        await world.wish(StartInstance)
        await world.until_settled(READY)


async def test_a_crash_loop_of_the_gateway_ends_in_error_with_its_last_words() -> None:
    async with World() as world:
        world.controllers.set("degraded", "crash_loop", "the gateway ended with status 1: out of memory")
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "crash_loop"
        assert (world.row.message or "").startswith("the gateway ended with status 1: out of memory; remedy: ")


async def test_a_stranger_at_the_controllers_port_is_named_and_outlasted() -> None:
    async with World() as world:
        world.controllers.errors = [DriverCapacity("port_taken", "a program of user 7 answers at port 9")]
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
    assert ("wait_ready", "port_taken") in world.store.failed_steps()


async def test_a_stranger_who_stays_ends_in_an_error_that_names_the_port() -> None:
    async with World() as world:
        world.controllers.errors = [DriverCapacity("port_taken", "a program of user 7 answers at port 9")] * 1000
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "port_taken"
        assert "port 9; remedy: end the program that holds the port" in (world.row.message or "")


async def test_a_driver_that_breaks_ends_in_error_and_can_be_deleted() -> None:
    """What no driver is meant to raise: the instance's deadlines and wishes count all the same."""
    async with World(limits=limits(max_attempts=2)) as world:
        world.driver.before["start"] = raising(*[UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")] * 50)
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "driver_broken"
        assert "UnicodeDecodeError" in (world.row.message or "")
        world.driver.before["observe"] = raising(*[KeyError("x")] * 2)
        await world.wish(DeleteInstance)
        await world.until_settled(DELETED, 8)
