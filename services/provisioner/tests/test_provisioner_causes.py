"""What led to each event: the command, whose id is its operation's, also where the reconciler tells of it."""

from __future__ import annotations

from hatchery_common.contracts.base import Message
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceMetered,
    InstanceStatus,
    ProvisionInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.contracts.operations import InstanceStepFinished
from hatchery_provisioner.domain.errors import DriverPermanent
from provisioner_fakes import World, limits, raising

READY, STOPPED, ERROR, DEGRADED, DELETED = (
    InstanceStatus.READY,
    InstanceStatus.STOPPED,
    InstanceStatus.ERROR,
    InstanceStatus.DEGRADED,
    InstanceStatus.DELETED,
)


def causes(world: World, *, since: int = 0) -> list[tuple[str, str | None]]:
    """The events but for readings of the meter, each with what led to it."""
    told: list[tuple[Message, str | None]] = list(zip(world.store.messages, world.store.causes, strict=True))
    return [
        (f"{one.aggregate}.{one.verb}", cause) for one, cause in told[since:] if not isinstance(one, InstanceMetered)
    ]


async def test_the_story_of_a_whole_life_has_a_cause_for_each_event() -> None:
    async with World() as world:
        for kind, status in ((ProvisionInstance, READY), (StopInstance, STOPPED), (DeleteInstance, DELETED)):
            await world.wish(kind)
            await world.until_settled(status)
            await world.until(lambda status=status: status is READY or world.row.next_at_ms is None)
    told = causes(world)
    assert [cause for _, cause in told] == sorted(str(cause) for _, cause in told)
    for name, operations in (
        ("instance.provisioning_began", {"op_1"}),
        ("instance.started", {"op_1"}),
        ("instance.stopped", {"op_2"}),
        ("instance.deleted", {"op_3"}),
        ("instance.step_finished", {"op_1", "op_2", "op_3"}),
        ("instance.operation_finished", {"op_1", "op_2", "op_3"}),
    ):
        assert {cause for kind, cause in told if kind == name} == operations, name


async def test_a_failure_has_its_cause() -> None:
    async with World() as world:
        world.driver.before["start"] = raising(DriverPermanent("disk_full", "no space left"))
        operation = await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        await world.until(lambda: world.row.next_at_ms is None)
        told = dict(causes(world))
        assert (
            told["instance.failed"] == told["instance.operation_failed"] == told["instance.step_finished"] == operation
        )


async def test_what_a_newer_wish_ends_is_caused_by_it_and_the_step_by_its_own() -> None:
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await world.until_status(InstanceStatus.STARTING)
        await world.until(lambda: world.row.waiting_for == "gateway")
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
    assert ("instance.operation_superseded", "op_2") in causes(world)
    for one, cause in zip(world.store.messages, world.store.causes, strict=True):
        if isinstance(one, InstanceStepFinished):
            assert one.operation_id == cause


async def test_what_happens_by_itself_has_no_cause() -> None:
    async with World(limits=limits(healthy_s=0.0)) as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        begun = len(world.store.messages)
        world.controllers.set("degraded", "gateway_unresponsive", "no answer")
        await world.until_status(DEGRADED)
        assert causes(world, since=begun) == [("instance.degraded", None)]
        begun = len(world.store.messages)
        await world.wish(StartInstance)
        world.controllers.set("ready")
        await world.until_settled(READY)
        assert {cause for _, cause in causes(world, since=begun)} == {"op_2"}
