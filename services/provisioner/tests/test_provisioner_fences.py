"""A stop that comes before its provision: it is remembered, and there is no instance before somebody says which."""

from __future__ import annotations

import pytest
from hatchery_common.bus import Delivery
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceEvent,
    InstanceStatus,
    ProvisionInstance,
    RestartInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.log import get_logger
from hatchery_provisioner.handlers import end_dead_wish
from provisioner_fakes import INSTANCE, TENANT, World, delivered

READY, STOPPED = InstanceStatus.READY, InstanceStatus.STOPPED


def provision(generation: int, operation: str) -> Delivery[ProvisionInstance]:
    wish = ProvisionInstance(
        tenant=TENANT, instance_id=INSTANCE, operation_id=operation, generation=generation, name="mine", size="large"
    )
    return delivered(wish, id=operation)


def told(world: World) -> list[tuple[str, str]]:
    """Name and status of the instance as others heard of them: the api begins a provision while this is empty."""
    return [(one.state.name, one.state.status.value) for one in world.store.told(InstanceEvent)]


async def test_a_stop_alone_makes_no_instance() -> None:
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        await world.wish(StopInstance, generation=3)
        await world.wish(StopInstance, generation=2)
    assert told(world) == []
    assert await world.store.pending() == []
    assert [how for _, how, _ in world.store.ended()] == ["finished", "finished", "superseded"]
    assert world.row.generation == 3


async def test_the_provision_that_was_overtaken_makes_it_a_stopped_one() -> None:
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        await world.deliver(provision(1, "op_first"))
        assert told(world) == [("mine", "stopped")]
        await world.wish(StartInstance, generation=3)
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()
        assert machine.spec.size == "large"
    assert {name for name, _ in told(world)} == {"mine"}
    assert [how for _, how, _ in world.store.ended()] == ["finished", "superseded", "finished"]


async def test_a_newer_provision_makes_it_as_if_nothing_had_been() -> None:
    """The first one became a dead letter and its person was told to ask again."""
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        await end_dead_wish(provision(1, "op_first"), store=world.store, log=get_logger("test"))
        assert world.store.ended()[-1] == ("op_first", "failed", "undeliverable")
        assert told(world) == []
        await world.deliver(provision(3, "op_again"))
        await world.until_settled(READY)
        (machine,) = world.driver.machines.values()
        assert (machine.spec.size, machine.spec.generation) == ("large", 3)
        await world.deliver(provision(1, "op_first"))  # from the dead letters, by hand
    assert {name for name, _ in told(world)} == {"mine"}
    assert told(world)[0] == ("mine", "provisioning")
    assert [one for one in world.store.ended() if one[0] == "op_again"] == [("op_again", "finished", None)]
    assert world.row.version == world.store.told(InstanceEvent)[-1].state.version


@pytest.mark.parametrize("kind", [StartInstance, RestartInstance])
async def test_nothing_is_started_that_no_provision_has_named(kind: type[StartInstance]) -> None:
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        operation = await world.wish(kind, generation=3)
        assert world.store.ended()[-1] == (operation, "failed", "unknown_instance")
    assert told(world) == []
    assert not world.driver.calls


async def test_a_delete_leaves_a_tombstone() -> None:
    async with World() as world:
        await world.wish(StopInstance, generation=2)
        operation = await world.wish(DeleteInstance, generation=3)
        assert world.store.ended()[-1] == (operation, "finished", None)
        await world.deliver(provision(1, "op_first"))
        assert world.row.status is InstanceStatus.DELETED
    assert [status for _, status in told(world)] == ["deleted"]
    assert await world.store.tombstones([INSTANCE]) == {INSTANCE}
