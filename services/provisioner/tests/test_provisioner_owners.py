"""The death, the freeze and the succession of owners, and what a sweep puts right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceCommand,
    InstanceStatus,
    ProvisionInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.contracts.routes import RouteState
from hatchery_common.errors import DependencyUnavailable
from hatchery_provisioner.domain.instance import MachineStage, Power
from hatchery_provisioner.ports import MachineRef
from provisioner_fakes import INSTANCE, TENANT, World, delivered, limits, raising
from provisioner_store import MemoryTransaction

READY, STOPPED, ERROR, DELETED = (
    InstanceStatus.READY,
    InstanceStatus.STOPPED,
    InstanceStatus.ERROR,
    InstanceStatus.DELETED,
)


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


async def test_users_that_an_older_version_did_not_store_come_into_the_open_route() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        await world.die()
        before = world.row
        world.store.rows[INSTANCE] = before.with_machine(endpoint_uid=None, controller_uid=None)
        world.store.routes.clear()
        await world.revive()
        await world.until(lambda: bool(world.store.routes))
        await world.until(lambda: world.row.status is READY)
        (route,) = world.store.routes
        assert (route.state, route.endpoint_uid, route.controller_uid) == (RouteState.RUNNING, 71, 72)
        assert route.route_version == before.route_version + 1 == world.row.route_version


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


async def test_a_machine_that_was_called_absent_in_error_is_found_at_rest() -> None:
    from hatchery_provisioner.reconciler import Sweeper
    from prometheus_client import CollectorRegistry

    async with World(limits=limits(backoff_first_s=5)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        hidden = dict(world.driver.machines)
        world.driver.machines.clear()
        world.reconciler.poke(INSTANCE)
        await world.until(lambda: world.row.machine is not None and world.row.machine.power is Power.OFF)
        await world.wish(StopInstance)
        await world.until(lambda: world.row.next_at_ms is None)
        world.driver.machines |= hidden
        sweeper = Sweeper(world.tools(), CollectorRegistry())
        for _ in range(2):
            await sweeper.sweep(world.store.epoch)
        await world.until(lambda: not any(machine.running for machine in hidden.values()))
        await world.until_settled(STOPPED)


class Freeze:
    """A moment at which an owner stands still until it is woken."""

    def __init__(self) -> None:
        self.asleep, self.wake = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.asleep.set()
        await self.wake.wait()


def before_the_start(world: World) -> Freeze:
    """At the driver's door."""
    freeze = Freeze()

    async def once() -> None:
        world.driver.before.pop("start")
        await freeze()

    world.driver.before["start"] = once
    return freeze


def before_the_step(world: World, monkeypatch: pytest.MonkeyPatch) -> Freeze:
    """When the start is noted in the row, and the step that is to make it is not told yet."""
    freeze, transaction = Freeze(), world.store.transaction

    @asynccontextmanager
    async def frozen(cause: Any = None, *, epoch: int | None = None) -> AsyncGenerator[MemoryTransaction]:
        row = world.store.rows.get(INSTANCE)
        noted = row is not None and row.machine is not None and row.machine.power is Power.UNKNOWN
        if noted and epoch is not None and not freeze.asleep.is_set():
            await freeze()
        async with transaction(cause, epoch=epoch) as work:
            yield work

    monkeypatch.setattr(world.store, "transaction", frozen)
    return freeze


async def overtaken(world: World, freeze: Freeze, *wishes: type[InstanceCommand]) -> None:
    """An owner is frozen about to start a machine; the next one obeys these wishes; then the first wakes up."""
    await world.wish(ProvisionInstance)
    await asyncio.wait_for(freeze.asleep.wait(), 5)
    frozen = world._task
    assert frozen is not None
    world.store.epoch += 1
    world.reconciler = world.build()
    world.begin()
    for kind in wishes:
        await world.wish(kind)
    await world.until(lambda: world.row.operation is None)
    freeze.wake.set()
    with pytest.raises(DependencyUnavailable):
        await asyncio.wait_for(frozen, 5)


async def test_the_late_start_of_a_frozen_owner_is_undone_by_itself() -> None:
    async with World() as world:
        await overtaken(world, before_the_start(world), StopInstance)
        (machine,) = world.driver.machines.values()
        assert (machine.boots, machine.running) == (1, False)
        assert world.row.status is STOPPED
        assert world.driver.graces == [world.limits.stop_grace_s], "in order: its data are somebody's"


async def test_an_owner_that_was_frozen_before_its_step_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It started nothing: what runs, the next owner started, and he may be stopping it in order."""
    async with World() as world:
        await overtaken(world, before_the_step(world, monkeypatch), StopInstance)
        assert "start" not in world.driver.calls
        assert world.driver.graces == []
        assert world.row.status is STOPPED


async def test_the_late_start_of_a_frozen_owner_leaves_alone_what_is_wanted() -> None:
    async with World() as world:
        await overtaken(world, before_the_start(world), StartInstance)
        (machine,) = world.driver.machines.values()
        assert (machine.boots, machine.running) == (1, True)
        assert world.driver.calls.count("stop") == 0
        assert world.row.status is READY


async def test_an_owner_that_is_cancelled_after_its_start_undoes_what_nobody_wants() -> None:
    """Whoever is frozen longest learns of it first by the loss of the lock, which cancels its lanes."""
    async with World() as world:
        started = asyncio.Event()

        async def linger() -> None:
            started.set()
            await asyncio.sleep(60)

        world.driver.after["start"] = linger
        await world.wish(ProvisionInstance)
        await asyncio.wait_for(started.wait(), 5)
        await world.wish(StopInstance)
        await world.die()
        (machine,) = world.driver.machines.values()
        assert (machine.boots, machine.running) == (1, False)
