"""Operations and their events in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_api.adapters import tables as t
from hatchery_api.domain.operations import Kind, Operation, OperationEvent, OperationState

_COLUMNS = [column for column in t.operations.c if column.name != "last_event"]
_CHANGING = ("state", "updated_ms", "ended_ms", "overdue_ms", "reason", "message")


class SqlOperations:
    """Implements Operations."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, tenant: str, operation_id: str) -> Operation | None:
        return await self._one(
            _select().where(t.operations.c.operation_id == operation_id, t.operations.c.tenant == tenant)
        )

    async def newest(self, instance_id: str) -> Operation | None:
        query = _select().where(t.operations.c.instance_id == instance_id)
        return await self._one(query.order_by(t.operations.c.generation.desc()).limit(1))

    async def lock(self, operation_id: str) -> Operation | None:
        return await self._one(_select().where(t.operations.c.operation_id == operation_id).with_for_update())

    async def add(self, operation: Operation) -> None:
        await self._connection.execute(insert(t.operations).values(**asdict(operation), last_event=0))

    async def save(self, operation: Operation) -> None:
        values = {name: getattr(operation, name) for name in _CHANGING}
        row = sa.update(t.operations).where(t.operations.c.operation_id == operation.operation_id)
        await self._connection.execute(row.values(**values))

    async def note(self, operation_id: str, kind: str, at_ms: int, data: dict[str, Any]) -> int:
        counted = sa.update(t.operations).where(t.operations.c.operation_id == operation_id)
        counted = counted.values(last_event=t.operations.c.last_event + 1).returning(t.operations.c.last_event)
        number = (await self._connection.execute(counted)).scalar_one()
        row = {"operation_id": operation_id, "number": number, "type": kind, "at_ms": at_ms, "data": data}
        await self._connection.execute(insert(t.operation_events).values(row))
        return number

    async def last_event(self, operation_id: str) -> int:
        query = sa.select(t.operations.c.last_event).where(t.operations.c.operation_id == operation_id)
        return int(await self._connection.scalar(query) or 0)

    async def events(self, operation_id: str, after: int, limit: int) -> Sequence[OperationEvent]:
        events = t.operation_events
        query = (
            sa.select(events.c.number, events.c.type, events.c.at_ms, events.c.data)
            .where(events.c.operation_id == operation_id, events.c.number > after)
            .order_by(events.c.number)
            .limit(limit)
        )
        return [OperationEvent(*row) for row in (await self._connection.execute(query)).all()]

    async def due(self, now_ms: int, limit: int) -> Sequence[Operation]:
        open_and_late = (
            t.operations.c.ended_ms.is_(None),
            t.operations.c.overdue_ms.is_(None),
            t.operations.c.deadline_ms < now_ms,
        )
        query = _select().where(*open_and_late).limit(limit).with_for_update(skip_locked=True)
        return [_operation(row) for row in (await self._connection.execute(query)).mappings()]

    async def _one(self, query: sa.Select[Any]) -> Operation | None:
        row = (await self._connection.execute(query)).mappings().first()
        return _operation(row) if row else None


def _select() -> sa.Select[Any]:
    return sa.select(*_COLUMNS)


def _operation(row: Any) -> Operation:
    values: dict[str, Any] = dict(row)
    values.update(kind=Kind(values["kind"]), state=OperationState(values["state"]))
    return Operation(**values)
