"""The store and the leases on a real Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hatchery_common.clock import FixedClock, SystemClock
from hatchery_common.contracts.instances import (
    InstanceStatus,
)
from hatchery_common.contracts.operations import InstanceOperationFinished
from hatchery_common.contracts.routes import RouteState
from hatchery_common.database import Database, outbox
from hatchery_common.errors import OwnershipLost
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import Range
from hatchery_provisioner.adapters.sql import PostgresStore, metadata
from hatchery_provisioner.domain.errors import DriverCapacity, DriverPermanent
from hatchery_provisioner.domain.instance import Instance, Machine, MachineStage, Operation, Power, StorageStage, Verb
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.domain.status import settle
from provisioner_fakes import TENANT

NOW = datetime(2026, 11, 20, tzinfo=UTC)


async def test_migrations_make_what_the_tables_say(database: Database) -> None:
    def compare(connection: sa.Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.connect() as connection:
        assert await connection.run_sync(compare) == []


def instance(**changes: object) -> Instance:
    base = Instance("ins_1", TENANT, "default", "standard", "process", 1, 1, 1, generation=3)
    full = base.evolve(
        operation=Operation("op_1", Verb.RESTART, 3),
        machine=Machine("mch_2", 3, MachineStage.CREATED, Power.ON, "http://h:1", "http://h:2", "b", {"port": 1}, 7, 8),
        retiring=(Machine("mch_1", 1, MachineStage.RETIRING, Power.UNKNOWN),),
        storage=StorageStage.USED,
        route_state=RouteState.STARTING,
        reason="probe_failed",
        next_at_ms=5,
        fence=True,
        **changes,
    )
    return settle(None, full, Limits(), 7)


async def test_an_instance_comes_back_as_it_was_saved(database: Database) -> None:
    store, saved = PostgresStore(database), instance()
    async with store.transaction() as work:
        assert await work.lock("ins_1") is None
        await work.save(saved)
    assert await store.get("ins_1") == saved
    assert [one.instance_id for one in await store.pending()] == ["ins_1"]
    assert await store.known_machines() == {"mch_1": "ins_1", "mch_2": "ins_1"}
    forgotten = saved.evolve(retiring=(), next_at_ms=None, status=InstanceStatus.DELETED)
    async with store.transaction() as work:
        assert await work.lock("ins_1") == saved
        await work.save(forgotten)
    assert await store.get("ins_1") == forgotten
    assert not await store.pending()
    assert await store.known_machines() == {"mch_2": "ins_1"}
    assert await store.tombstones(["ins_1", "ins_2"]) == {"ins_1"}


async def test_a_second_live_machine_is_impossible(database: Database) -> None:
    store = PostgresStore(database)
    async with store.transaction() as work:
        await work.save(instance())
    other = sa.text(
        "INSERT INTO machines (machine_id, instance_id, generation, stage, power, state, changed_at_ms) "
        "VALUES ('mch_9', 'ins_1', 4, 'planned', 'off', '{}', 0)"
    )
    with pytest.raises(sa.exc.IntegrityError):
        async with database.unit_of_work() as work:
            await work.connection.execute(other)


async def test_a_message_of_a_given_id_is_emitted_once(database: Database) -> None:
    store = PostgresStore(database)
    ended = InstanceOperationFinished(tenant=TENANT, instance_id="ins_1", operation_id="op_1", generation=1)
    for _ in range(2):
        async with store.transaction() as work:
            await work.emit(ended, id="op_1-ended")
    async with database.connect() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(outbox)) == 1


async def test_boots_and_epochs(database: Database) -> None:
    store = PostgresStore(database)
    boot = Boot("b1", "ins_1", "mch_1", TENANT, "standard", 10, counted_ms=5)
    async with store.transaction() as work:
        await work.save_boot(boot)
    async with store.transaction() as work:
        assert list(await work.boots("ins_1", seen=None)) == [boot]
        await work.save_boot(Boot(**{**boot.__dict__, "final": True}))
    async with store.transaction() as work:
        assert not await work.boots("ins_1", seen=None)
        assert [one.final for one in await work.boots("ins_1", seen="b1")] == [True]
        assert not await work.boots("ins_1", seen="b2")
    with pytest.raises(OwnershipLost):
        async with store.transaction(epoch=99):
            pass


async def test_leases_are_never_shared_and_rest_before_they_are_given_again(database: Database) -> None:
    clock = FixedClock(NOW)
    leases = PostgresLeases(database, clock, Range(9000, 2), Range(62000, 5))
    one = await leases.reserve("ins_1")
    assert one == await leases.reserve("ins_1") == await leases.find("ins_1")
    two = await leases.reserve("ins_2")
    assert {one.port, two.port} == {9000, 9001}
    assert one.uid != two.uid
    with pytest.raises(DriverCapacity) as full:
        await leases.reserve("ins_3")
    assert full.value.reason == "no_free_port"
    await leases.release("ins_1")
    await leases.release("ins_1")
    with pytest.raises(DriverCapacity):
        await leases.reserve("ins_3")
    clock.at = NOW + timedelta(minutes=10)
    with pytest.raises(DriverCapacity):
        await leases.reserve("ins_3")
    clock.at = NOW + timedelta(minutes=11)
    assert (await leases.reserve("ins_3")).port == one.port


async def kept(database: Database, instance_id: str, tenant: str, created_at_ms: int) -> None:
    row = Instance(instance_id, tenant, "default", "standard", "process", created_at_ms, 1, 1, generation=1)
    async with PostgresStore(database).transaction() as work:
        await work.save(settle(None, row, Limits(), 7))


async def test_where_gateways_share_a_user_one_tenant_is_served(database: Database) -> None:
    for instance_id, tenant, at in (("ins_2", "tenant-b", 2), ("ins_1", "tenant-a", 1), ("ins_3", "tenant-a", 3)):
        await kept(database, instance_id, tenant, at)
    leases = PostgresLeases(database, SystemClock(), Range(9000, 9), None, one_tenant=True)
    await leases.reserve("ins_1")
    for _ in range(2):
        with pytest.raises(DriverPermanent) as refused:
            await leases.reserve("ins_2")
        assert refused.value.reason == "shared_user"
        assert "TRUST_ALL_USERS" in (refused.value.hint or "")
    assert await leases.find("ins_2") is None
    assert (await leases.reserve("ins_3")).port == 9001
    assert (await replace(leases, one_tenant=False).reserve("ins_2")).port == 9002
    with pytest.raises(DriverPermanent):
        await leases.reserve("ins_2")
    for instance_id in ("ins_1", "ins_3"):
        await leases.release(instance_id)
    assert (await leases.reserve("ins_2")).port == 9002


async def test_a_lease_from_before_there_were_users_gets_one(database: Database) -> None:
    without = PostgresLeases(database, SystemClock(), Range(9000, 9), None)
    held = await without.reserve("ins_1")
    given = await replace(without, uids=Range(62000, 5)).reserve("ins_1")
    assert (held.uid, given.port, given.uid) == (None, held.port, 62000)
    assert await without.reserve("ins_1") == await without.find("ins_1") == given, "one that has a user keeps it"


async def test_a_user_is_given_again_only_when_no_fresh_one_is_left(database: Database) -> None:
    """What its former holder left somewhere on the host would be the next one's."""
    clock = FixedClock(NOW)
    leases = PostgresLeases(database, clock, Range(9000, 9), Range(62000, 3))
    given: list[int | None] = []
    for number in range(5):
        given.append((await leases.reserve(f"ins_{number}")).uid)
        await leases.release(f"ins_{number}")
        clock.at += timedelta(hours=1)
    assert given == [62000, 62001, 62002, 62000, 62001]


async def test_concurrent_reservations_get_different_ports(database: Database) -> None:
    leases = PostgresLeases(database, SystemClock(), Range(9000, 30), None)
    found = await asyncio.gather(*(leases.reserve(f"ins_{number % 10}") for number in range(20)))
    assert len({lease.port for lease in found}) == 10


async def test_a_taken_port_moves_the_lease(database: Database) -> None:
    leases = PostgresLeases(database, SystemClock(), Range(9000, 3), None)
    await leases.reserve("ins_1")
    assert (await leases.move("ins_1", 9000)).port == 9001
    assert (await leases.move("ins_1", 9000)).port == 9001, "a repeat must not move it again"
