"""The store on Postgres."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from hatchery_common.bus import Cause, Delivery
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.instances import Condition, DesiredState, InstanceStatus
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.database import Database, UnitOfWork
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_provisioner.adapters.tables import BootRow, InstanceRow, MachineRow, metadata, table
from hatchery_provisioner.domain.instance import (
    Instance,
    Machine,
    MachineStage,
    Operation,
    Power,
    StorageStage,
    Verb,
)
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.ports import Due, Transaction

__all__ = ["PostgresStore", "metadata"]

_instances, _machines, _boots = table(InstanceRow), table(MachineRow), table(BootRow)
_PLAIN = (
    *("instance_id", "tenant", "name", "size", "driver", "stopped_by", "generation", "version", "since_ms"),
    *("deadline_ms", "reason", "message", "waiting_for", "renew", "restarting", "failed", "ready", "degraded"),
    *("ready_since_ms", "last_ready_at_ms", "gateway_version", "attempts", "not_before_ms", "route_version"),
    *("next_at_ms", "created_at_ms", "updated_at_ms", "fence"),
)


def _instance_values(instance: Instance) -> dict[str, Any]:
    operation = instance.operation
    return {name: getattr(instance, name) for name in _PLAIN} | {
        "desired": instance.desired.value,
        "status": instance.status.value,
        "storage": instance.storage.value,
        "route_state": instance.route_state.value,
        "operation_id": operation.id if operation else None,
        "operation_verb": operation.verb.value if operation else None,
        "operation_generation": operation.generation if operation else None,
        "conditions": [condition.model_dump() for condition in instance.conditions],
    }


def _instance(row: Any, machines: Sequence[Machine]) -> Instance:
    operation = None
    if row.operation_id is not None:
        operation = Operation(row.operation_id, Verb(row.operation_verb), row.operation_generation)
    return Instance(
        **{name: getattr(row, name) for name in _PLAIN},
        desired=DesiredState(row.desired),
        status=InstanceStatus(row.status),
        storage=StorageStage(row.storage),
        route_state=RouteState(row.route_state),
        operation=operation,
        conditions=tuple(Condition(**condition) for condition in row.conditions),
        machine=next((one for one in machines if one.stage is not MachineStage.RETIRING), None),
        retiring=tuple(one for one in machines if one.stage is MachineStage.RETIRING),
    )


def _machine(row: Any) -> Machine:
    return Machine(
        row.machine_id,
        row.generation,
        MachineStage(row.stage),
        Power(row.power),
        row.endpoint,
        row.controller,
        row.boot_id,
        row.state,
        row.endpoint_uid,
        row.controller_uid,
    )


def _machine_values(machine: Machine, instance: Instance) -> dict[str, Any]:
    return {
        "machine_id": machine.machine_id,
        "instance_id": instance.instance_id,
        "generation": machine.generation,
        "stage": machine.stage.value,
        "power": machine.power.value,
        "endpoint": machine.endpoint,
        "controller": machine.controller,
        "endpoint_uid": machine.endpoint_uid,
        "controller_uid": machine.controller_uid,
        "boot_id": machine.boot_id,
        "state": machine.state,
        "changed_at_ms": instance.updated_at_ms,
    }


def _upsert(target: sa.Table, values: dict[str, Any], *keys: str) -> Any:
    row = insert(target).values(values)
    changed = {name: row.excluded[name] for name in values if name not in keys}
    return row.on_conflict_do_update(index_elements=keys, set_=changed)


async def _read(connection: AsyncConnection, instance_id: str, *, lock: bool) -> Instance | None:
    query = sa.select(_instances).where(_instances.c.instance_id == instance_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        return None
    live = sa.select(_machines).where(_machines.c.instance_id == instance_id, _machines.c.stage != "gone")
    machines = (await connection.execute(live.order_by(_machines.c.generation, _machines.c.machine_id))).all()
    return _instance(row, [_machine(one) for one in machines])


class _SqlTransaction:
    """The Transaction port on one unit of work."""

    def __init__(self, work: UnitOfWork, *, delivered: bool) -> None:
        self._work = work
        self._delivered = delivered
        self._connection = work.connection

    async def first_delivery(self) -> bool:
        return await self._work.first_delivery()

    async def lock(self, instance_id: str) -> Instance | None:
        key = sa.func.hashtextextended(instance_id, 0)
        await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))  # the row may not exist yet
        return await _read(self._connection, instance_id, lock=True)

    async def save(self, instance: Instance) -> None:
        await self._connection.execute(_upsert(_instances, _instance_values(instance), "instance_id"))
        kept = [machine.machine_id for machine in instance.machines]
        forgotten = sa.update(_machines).where(
            _machines.c.instance_id == instance.instance_id,
            _machines.c.stage != "gone",
            _machines.c.machine_id.not_in(kept),
        )
        await self._connection.execute(forgotten.values(stage="gone", changed_at_ms=instance.updated_at_ms))
        for machine in instance.machines:
            await self._connection.execute(_upsert(_machines, _machine_values(machine, instance), "machine_id"))

    async def emit(self, message: Message, *, id: str | None = None, operation_id: str | None = None) -> str:  # noqa: A002
        cause = None if self._delivered or operation_id is None else Cause(operation_id)
        return await self._work.emit(message, id=id, cause=cause)

    async def put_route(self, route: Route) -> None:
        await self._work.put_route(route)

    async def boots(self, instance_id: str, *, seen: str | None) -> Sequence[Boot]:
        wanted = sa.or_(~_boots.c.final, _boots.c.boot_id == seen) if seen else ~_boots.c.final
        query = sa.select(_boots).where(_boots.c.instance_id == instance_id, wanted)
        rows = (await self._connection.execute(query)).mappings().all()
        return [Boot(**row) for row in rows]

    async def save_boot(self, boot: Boot) -> None:
        await self._connection.execute(_upsert(_boots, dict(boot.__dict__), "boot_id"))


class PostgresStore:
    """The Store port on the service's own schema."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def transaction(
        self, cause: Delivery[Any] | None = None, *, epoch: int | None = None
    ) -> AsyncGenerator[Transaction]:
        async with self._database.unit_of_work(cause, epoch=epoch) as work:
            yield _SqlTransaction(work, delivered=cause is not None)

    async def get(self, instance_id: str) -> Instance | None:
        async with self._database.connect() as connection:
            return await _read(connection, instance_id, lock=False)

    async def pending(self) -> Sequence[Due]:
        columns = (_instances.c.instance_id, _instances.c.generation, _instances.c.next_at_ms)
        query = sa.select(*columns).where(_instances.c.next_at_ms.is_not(None)).order_by(_instances.c.next_at_ms)
        async with self._database.connect() as connection:
            return [Due(*row) for row in (await connection.execute(query)).all()]

    async def known_machines(self) -> dict[str, str]:
        query = sa.select(_machines.c.machine_id, _machines.c.instance_id).where(_machines.c.stage != "gone")
        async with self._database.connect() as connection:
            return {row[0]: row[1] for row in (await connection.execute(query)).all()}

    async def tombstones(self, instance_ids: Sequence[str]) -> frozenset[str]:
        query = sa.select(_instances.c.instance_id).where(
            _instances.c.instance_id.in_(instance_ids), _instances.c.status == "deleted"
        )
        async with self._database.connect() as connection:
            return frozenset(row[0] for row in (await connection.execute(query)).all())
