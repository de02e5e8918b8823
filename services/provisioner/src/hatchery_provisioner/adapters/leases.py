"""Ports and users of the process driver, stored before anything uses them and never shared by two instances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from hatchery_common.clock import Clock, to_ms
from hatchery_common.database import Database
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_provisioner.adapters.process.leases import Lease, Range
from hatchery_provisioner.adapters.tables import LeaseRow, RetiredRow, table
from hatchery_provisioner.domain.errors import DriverCapacity
from hatchery_provisioner.domain.reasons import Reason

_leases, _retired = table(LeaseRow), table(RetiredRow)
_LOCK = 0x6C6561736573  # "leases": one allocation at a time


@dataclass(frozen=True)
class PostgresLeases:
    """The Leases port on the service's own schema."""

    database: Database
    clock: Clock
    ports: Range
    uids: Range | None
    hold_s: float = 630.0  # ten minutes of the tombstoned route, and some

    async def reserve(self, instance_id: str) -> Lease:
        async with self.database.unit_of_work() as work:
            connection = await self._locked(work.connection)
            held = await self._held(connection, instance_id)
            if held is not None:
                return held
            port = await self._free(connection, "port", self.ports, _leases.c.port)
            uid = await self._free(connection, "uid", self.uids, _leases.c.uid) if self.uids else None
            await connection.execute(sa.insert(_leases).values(instance_id=instance_id, port=port, uid=uid))
            return Lease(port, uid)

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
        """The lowest number that nobody has or had lately."""
        now_ms = to_ms(self.clock.now())
        await connection.execute(sa.delete(_retired).where(_retired.c.kind == kind, _retired.c.until_ms <= now_ms))
        retired = sa.select(_retired.c.number).where(_retired.c.kind == kind)
        taken: set[int] = set()
        for query in (sa.select(column), retired):
            taken |= set(_numbers((await connection.execute(query)).all()))
        for number in within.numbers:
            if number not in taken:
                return number
        raise DriverCapacity(Reason.NO_PORT, f"no free {kind} is left in {within.first}..{within.last}")


def _numbers(rows: Iterable[Any]) -> Iterable[int]:
    return (row[0] for row in rows if row[0] is not None)
