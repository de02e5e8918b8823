"""A wish that went to the dead letters: its operation ends once, and what the wish may still do."""

from __future__ import annotations

import asyncio

import pytest
from hatchery_common.bus import Delivery
from hatchery_common.contracts.instances import InstanceStatus, ProvisionInstance, StartInstance, StopInstance
from hatchery_common.errors import DependencyUnavailable
from hatchery_common.log import get_logger
from hatchery_provisioner.handlers import end_dead_wish
from provisioner_fakes import INSTANCE, TENANT, World, delivered

READY, STOPPED = InstanceStatus.READY, InstanceStatus.STOPPED


def start(generation: int, operation: str) -> Delivery[StartInstance]:
    wish = StartInstance(tenant=TENANT, instance_id=INSTANCE, operation_id=operation, generation=generation)
    return delivered(wish, id=operation)


async def dead(world: World, delivery: Delivery[StartInstance]) -> None:
    for _ in range(2):
        await end_dead_wish(delivery, store=world.store, log=get_logger("test"))


async def test_its_operation_fails_once_and_says_what_to_do() -> None:
    world = World()
    await dead(world, start(2, "op_dead"))
    assert world.store.ended() == [("op_dead", "failed", "undeliverable")]
    (told,) = world.store.messages
    assert "remedy: ask for it again" in told.model_dump()["message"]


async def test_redriven_it_still_counts_while_it_is_the_newest_and_its_operation_stays_ended() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        wish = start(3, "op_dead")
        await dead(world, wish)
        await world.deliver(wish)
        await world.until_settled(READY)
    assert [one for one in world.store.ended() if one[0] == "op_dead"] == [("op_dead", "failed", "undeliverable")]


async def test_one_that_a_newer_wish_overtook_is_superseded() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.wish(StopInstance)
        await world.until_settled(STOPPED)
        wish = start(1, "op_dead")
        await dead(world, wish)
        await world.deliver(wish)
        await asyncio.sleep(0.1)
        assert world.row.status is STOPPED
    assert [one for one in world.store.ended() if one[0] == "op_dead"] == [("op_dead", "superseded", "newer_wish")]


async def test_one_that_is_in_work_ends_by_its_work() -> None:
    """Its effect was committed and only its acknowledgement failed, again and again."""
    async with World() as world:
        world.controllers.set("live")
        await world.wish(ProvisionInstance)
        await dead(world, world.sent[0])
        assert world.store.ended() == []
        world.controllers.set("ready")
        await world.until_settled(READY)
    assert world.store.ended() == [("op_1", "finished", None)]


async def test_it_is_told_again_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def away(*_: object) -> None:
        raise DependencyUnavailable("no database")

    monkeypatch.setattr(world.store, "transaction", away)
    with pytest.raises(DependencyUnavailable):
        await end_dead_wish(start(2, "op_dead"), store=world.store, log=get_logger("test"))
