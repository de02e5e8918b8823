"""Ports and users of the process driver, stored before anything uses them and never shared by two instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from hatchery_common.clock import Clock, to_ms
from hatchery_common.database import Database
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_provisioner.adapters.process.leases import Lease, Range
from hatchery_provisioner.adapters.tables import InstanceRow, LeaseRow, RetiredRow, table
from hatchery_provisioner.domain.errors import DriverCapacity, DriverPermanent
from hatchery_provisioner.domain.reasons import Reason, remedy_of

_instances, _leases, _retired = table(InstanceRow), table(LeaseRow), table(RetiredRow)
_LOCK = 0x6C6561736573  # "leases": one allocation at a time


@dataclass(frozen=True)
class PostgresLeases:
    """The Leases port on the service's own schema.

    With `one_tenant`, as where gateways share a user, only the tenant of the oldest instance here is served.
    """

    database: Database
    clock: Clock
    ports: Range
    uids: Range | None
    hold_s: float = 630.0  # ten minutes of the tombstoned route, and some
    one_tenant: bool = False

    async def reserve(self, instance_id: str) -> Lease:
        async with self.database.unit_of_work() as work:
            connection = await self._locked(work.connection)
            if self.one_tenant:
                await self._refuse_second_tenant(connection, instance_id)
            held = await self._held(connection, instance_id)
            if held is not None and (held.uid is not None or self.uids is None):
                return held
            port = held.port if held else await self._free(connection, "port", self.ports, _leases.c.port)
            uid = await self._free(connection, "uid", self.uids, _leases.c.uid) if self.uids else None
            lease = insert(_leases).values(instance_id=instance_id, port=port, uid=uid)
            given = lease.on_conflict_do_update(
                index_elements=["instance_id"], set_={"uid": uid}
            )  # made before users were
            await connection.execute(given)
            return Lease(port, uid)

    async def _refuse_second_tenant(self, connection: AsyncConnection, instance_id: str) -> None:
        """Under the lock of allocations, so that of two first ones exactly one is served."""
        here = _leases.join(_instances, _instances.c.instance_id == _leases.c.instance_id)
        oldest = sa.select(_instances.c.tenant).select_from(here)
        oldest = oldest.order_by(_instances.c.created_at_ms, _instances.c.instance_id).limit(1)
        served = await connection.scalar(oldest)
        asking = await connection.scalar(sa.select(_instances.c.tenant).where(_instances.c.instance_id == instance_id))
        if served is not None and asking is not None and served != asking:
            raise DriverPermanent(
                Reason.SHARED_USER,
                "gateways here share one user of the host, and an instance of another user of ours is here already",
                hint=remedy_of(Reason.SHARED_USER),
            )

    async def find(self, instance_id: str) -> Lease | None:
        async with self.database.connect() as connection:
            return await self._held(connection, instance_id)

    async def move(self, instance_id: str, from_port: int) -> Lease:
        async with self.database.unit_of_work() as work:
            connection = await self._locked(work.connection)
            held = await self._held(connection, instance_id)
            if held is not None and held.port != from_port:
                return held
            await self._retire(connection, {"port": from_port})
            port = await self._free(connection, "port", self.ports, _leases.c.port)
            await connection.execute(sa.update(_leases).where(_leases.c.instance_id == instance_id).values(port=port))
            return Lease(port, held.uid if held else None)

    async def release(self, instance_id: str) -> None:
        async with self.database.unit_of_work() as work:
            connection = await self._locked(work.connection)
            held = await self._held(connection, instance_id)
            if held is None:
                return
            await self._retire(connection, {"port": held.port, "uid": held.uid})
            await connection.execute(sa.delete(_leases).where(_leases.c.instance_id == instance_id))

    async def _locked(self, connection: AsyncConnection) -> AsyncConnection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        return connection

    async def _held(self, connection: AsyncConnection, instance_id: str) -> Lease | None:
        query = sa.select(_leases.c.port, _leases.c.uid).where(_leases.c.instance_id == instance_id)
        row = (await connection.execute(query)).first()
        return None if row is None else Lease(row.port, row.uid)

    async def _retire(self, connection: AsyncConnection, numbers: dict[str, int | None]) -> None:
        until_ms = to_ms(self.clock.now()) + int(self.hold_s * 1000)
        for kind, number in numbers.items():
            if number is None:
                continue
            row = insert(_retired).values(kind=kind, number=number, until_ms=until_ms)
            await connection.execute(
                row.on_conflict_do_update(index_elements=["kind", "number"], set_={"until_ms": until_ms})
            )

    async def _free(self, connection: AsyncConnection, kind: str, within: Range, column: Any) -> int:
        """The lowest number that nobody ever had, else the one that has rested longest, if it has rested enough."""
        now_ms = to_ms(self.clock.now())
        taken = {row[0] for row in (await connection.execute(sa.select(column))).all()}
        query = sa.select(_retired.c.number, _retired.c.until_ms).where(_retired.c.kind == kind)
        rests: dict[int, int] = {row[0]: row[1] for row in (await connection.execute(query)).all()}
        free = [number for number in within.numbers if number not in taken and rests.get(number, 0) <= now_ms]
        if not free:
            raise DriverCapacity(Reason.NO_PORT, f"no free {kind} is left in {within.first}..{within.last}")
        return min(free, key=lambda number: (rests.get(number, 0), number))
