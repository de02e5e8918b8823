"""Parked runs in Postgres: the row is the job, the thread's lease is the claim, and time is Postgres's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from hatchery_common.bus import Delivery
from hatchery_common.database import Database
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_agent.adapters.sql import OPEN, runs, threads
from hatchery_agent.adapters.sql_runs import RUN_QUERY, check_fence, run_row
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.ports import Lease, RunRow

_PARKED = sa.and_(runs.c.due_at.is_not(None), runs.c.status.in_(OPEN))  # what has ended is nobody's job


class SqlParking:
    """The port Parking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def park(
        self, row: RunRow, lease: Lease, *, began_ms: int, look_s: float, cause: Delivery[Any] | None
    ) -> None:
        news = runs.c.woken_at.is_distinct_from(sa.literal(row.woken_at, runs.c.woken_at.type))
        due_at = sa.case((news, _now()), else_=_in(look_s))
        changed = {
            "due_at": due_at,
            "began_at_ms": sa.func.coalesce(runs.c.began_at_ms, began_ms),
            **_handed_over(cause),
        }
        async with self._database.unit_of_work(cause) as work:
            await check_fence(work.connection, lease)
            due_at = await _hand_over(work.connection, row, changed)
            behind = sa.and_(runs.c.thread_id == row.thread_id, _PARKED)
            await work.connection.execute(runs.update().where(behind).values(due_at=due_at))
            if cause is not None:
                await work.first_delivery()

    async def park_behind(self, row: RunRow, lease: Lease, *, cause: Delivery[Any] | None) -> None:
        ahead = sa.alias(runs)
        parked = sa.and_(ahead.c.thread_id == row.thread_id, ahead.c.status.in_(OPEN))
        first = sa.select(sa.func.min(ahead.c.due_at)).where(parked).scalar_subquery()
        changed = {"due_at": sa.func.coalesce(first, _now()), **_handed_over(cause)}
        async with self._database.unit_of_work(cause) as work:
            await check_fence(work.connection, lease)
            await _hand_over(work.connection, row, changed)
            if cause is not None:
                await work.first_delivery()

    async def wake(self, tenant: str, instance_id: str) -> bool:
        """Also marks those that somebody just looks at: they will not be parked past this news."""
        of_instance = sa.and_(threads.c.tenant == tenant, threads.c.instance_id == instance_id)
        theirs = sa.and_(runs.c.status.in_(OPEN), runs.c.thread_id == threads.c.thread_id, of_instance)
        woken = {"woken_at": _now(), "due_at": sa.case((runs.c.due_at.is_not(None), _now()), else_=None)}
        update = runs.update().where(theirs).values(woken).returning(runs.c.due_at)
        async with self._database.unit_of_work() as work:
            return any(due_at is not None for due_at in (await work.connection.execute(update)).scalars())

    async def due(self, limit: int) -> Sequence[RunRow]:
        free = sa.or_(threads.c.lease_expires_at.is_(None), threads.c.lease_expires_at <= _now())
        ready = runs.c.due_at <= _now()
        places = (
            sa.select(sa.func.min(runs.c.due_at).label("since"), runs.c.thread_id)
            .join(threads, threads.c.thread_id == runs.c.thread_id)
            .where(_PARKED, ready, free)
            .group_by(runs.c.thread_id)
            .order_by(sa.text("since"))
            .limit(limit)
            .subquery()
        )
        parked = RUN_QUERY.join(places, places.c.thread_id == runs.c.thread_id).where(_PARKED)
        query = parked.order_by(places.c.since, runs.c.thread_id, runs.c.created_at_ms, runs.c.run_id)
        async with self._database.connect() as connection:
            found = [run_row(row) for row in (await connection.execute(query)).all()]
        oldest: dict[str, RunRow] = {}
        for row in found:
            oldest.setdefault(row.thread_id, row)
        return list(oldest.values())

    async def next_due_s(self) -> float | None:
        """A thread that somebody holds may be free, without its holder's word, when the lease ends."""
        moment = sa.func.greatest(runs.c.due_at, threads.c.lease_expires_at)  # it ignores a lease that is null
        left = sa.extract("epoch", sa.func.min(moment) - _now())
        query = (
            sa.select(left)
            .select_from(runs.join(threads, threads.c.thread_id == runs.c.thread_id))
            .where(_PARKED, moment > _now())
        )
        async with self._database.connect() as connection:
            seconds = await connection.scalar(query)
        return None if seconds is None else float(seconds)

    async def postpone(self, thread_id: str, delay_s: float) -> None:
        parked = sa.and_(runs.c.thread_id == thread_id, _PARKED)
        async with self._database.unit_of_work() as work:
            await work.connection.execute(runs.update().where(parked).values(due_at=_in(delay_s)))


def _now() -> sa.ColumnElement[Any]:
    return sa.func.clock_timestamp()


def _in(seconds: float) -> sa.ColumnElement[Any]:
    return _now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


async def _hand_over(connection: AsyncConnection, row: RunRow, changed: dict[str, Any]) -> datetime:
    """Park the open row; returns when it is due."""
    still_open = sa.and_(runs.c.run_id == row.run_id, runs.c.status.in_(OPEN))
    due_at = await connection.scalar(runs.update().where(still_open).values(changed).returning(runs.c.due_at))
    if due_at is None:
        raise LeaseLost("another worker ended this run", run_id=row.run_id)
    return due_at


def _handed_over(cause: Delivery[Any] | None) -> dict[str, Any]:
    """The row is the job from here on; it keeps what of the acknowledged command goes into the facts that follow."""
    if cause is None:
        return {"touched_at": _now()}
    kept = {"id": cause.id, "correlation_id": cause.correlation_id, "traceparent": cause.traceparent}
    return {"touched_at": _now(), "cause": sa.func.coalesce(runs.c.cause, sa.literal(kept, JSONB))}
