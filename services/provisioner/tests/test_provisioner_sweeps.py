"""What a sweep that breaks does to the owner's loops."""

from __future__ import annotations

import asyncio

import pytest
from hatchery_common.contracts.instances import InstanceStatus, ProvisionInstance, StopInstance
from hatchery_common.errors import OwnershipLost
from hatchery_common.owner import Ownership
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.ports import MachineSpec
from hatchery_provisioner.reconciler import Sweeper
from prometheus_client import CollectorRegistry
from provisioner_fakes import TENANT, World, raising


async def test_a_sweep_that_breaks_is_made_again() -> None:
    """Whatever a driver raises: the lanes beside it, and later sweeps, go on."""
    async with World() as world:
        await world.driver.ensure(MachineSpec("ins_stranger", TENANT, "mch_stranger", 1, 1))
        broken = [KeyError("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]
        world.driver.before["delete"] = raising(*broken)
        sweeper = Sweeper(world.tools(), CollectorRegistry(), every_s=0.02)
        sweeps = asyncio.create_task(sweeper.run(Ownership(world.store.epoch)))
        await world.until(lambda: sweeps.done() or "mch_stranger" not in world.driver.machines)
        assert not sweeps.done()
        sweeps.cancel()
        await asyncio.wait({sweeps})


async def test_an_orphan_that_cannot_be_removed_holds_up_no_other() -> None:
    async with World() as world:
        for name in ("first", "second"):
            await world.driver.ensure(MachineSpec(f"ins_{name}", TENANT, f"mch_{name}", 1, 1))
        world.driver.before["delete"] = raising(DriverTransient("storage_busy", "not now"))
        sweeper = Sweeper(world.tools(), CollectorRegistry())
        for _ in range(2):
            assert len(await sweeper.sweep(world.store.epoch)) == 2
        assert len(world.driver.machines) == 1
        await sweeper.sweep(world.store.epoch)
        assert not world.driver.machines


async def test_a_sweep_of_an_owner_whose_time_is_over_ends() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(InstanceStatus.READY)
        await world.wish(StopInstance)
        await world.until_settled(InstanceStatus.STOPPED)
        await world.until(lambda: world.row.next_at_ms is None)
        (machine,) = world.driver.machines.values()
        machine.running = True
        sweeper = Sweeper(world.tools(), CollectorRegistry(), every_s=0.02)
        with pytest.raises(OwnershipLost):
            await asyncio.wait_for(sweeper.run(Ownership(world.store.epoch - 1)), 5)
