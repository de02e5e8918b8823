"""Runs, checkpoints and housekeeping in Postgres, with the facts about runs in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from hatchery_common.bus import Delivery
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import RunFailed, RunFinished, RunStarted
from hatchery_common.database import Database, UnitOfWork
from hatchery_common.errors import NotFound
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_agent.adapters.sql import OPEN, checkpoints, pending_texts, runs, threads
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.domain.folding import RunPhase, RunState
from hatchery_agent.ports import Checkpoint, Lease, RunRow

RUN_QUERY = (
    sa.select(
        runs.c.tenant,
        runs.c.thread_id,
        runs.c.run_id,
        threads.c.instance_id,
        threads.c.session_key,
        runs.c.message_id,
        pending_texts.c.text,
        runs.c.status,
        threads.c.quiet_sequence,
        checkpoints.c.accepted,
        runs.c.due_at,
        (runs.c.due_at <= sa.func.clock_timestamp()).label("due"),
        runs.c.began_at_ms,
        runs.c.woken_at,
        runs.c.touched_at,
        runs.c.cause,
    )
    .join(threads, threads.c.thread_id == runs.c.thread_id)
    .outerjoin(pending_texts, pending_texts.c.run_id == runs.c.run_id)
    .outerjoin(checkpoints, checkpoints.c.run_id == runs.c.run_id)
)


class SqlRuns:
    """Runs and Housekeeping on one schema."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def load(self, tenant: str, run_id: str) -> RunRow:
        query = RUN_QUERY.where(runs.c.run_id == run_id, runs.c.tenant == tenant)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound("there is no such run", run_id=run_id)
        return run_row(row)

    async def queued(self, run_id: str) -> None:
        touched = runs.update().where(runs.c.run_id == run_id).values(touched_at=sa.func.now())
        async with self._database.unit_of_work() as work:
            await work.connection.execute(pending_texts.delete().where(pending_texts.c.run_id == run_id))
            await work.connection.execute(touched)

    async def started(self, row: RunRow, lease: Lease, attempt: int, *, cause: Delivery[Any] | None) -> None:
        async with self._database.unit_of_work(cause) as work:
            await check_fence(work.connection, lease)
            changed = {"status": "running", "attempt": attempt, "touched_at": sa.func.now()}
            await work.connection.execute(runs.update().where(runs.c.run_id == row.run_id).values(changed))
            await self._use_thread(work, row, "running")
            fact = RunStarted(
                tenant=row.tenant,
                run_id=row.run_id,
                thread_id=row.thread_id,
                instance_id=row.instance_id,
                attempt=attempt,
                at_ms=to_ms(self._clock.now()),
            )
            await work.emit(fact, id=f"{row.run_id}-started-{attempt}")

    async def checkpoint(self, run_id: str, lease: Lease, point: Checkpoint) -> None:
        values = {
            "attempt": point.attempt,
            "accepted": point.accepted,
            "text_sequence": point.text_sequence,
            "fence": lease.fence,
        }
        async with self._database.unit_of_work() as work:
            await check_fence(work.connection, lease)
            row = insert(checkpoints).values(run_id=run_id, **values)
            await work.connection.execute(row.on_conflict_do_update(index_elements=["run_id"], set_=values))

    async def settle(
        self, row: RunRow, lease: Lease, run: RunState, *, quiet: int | None, cause: Delivery[Any] | None
    ) -> None:
        async with self._database.unit_of_work(cause) as work:
            if await self._end(work.connection, run):
                await self._use_thread(work, row, str(run.phase))
                await work.emit(self._fact(row, run), id=f"{row.run_id}-end")
            if quiet is not None:
                await work.connection.execute(threads.update().where(_quiet(lease, run)).values(quiet_sequence=quiet))
            else:  # others of this thread are open: those that are parked waited for this one
                behind = sa.and_(runs.c.thread_id == row.thread_id, runs.c.due_at.is_not(None))
                await work.connection.execute(runs.update().where(behind).values(due_at=sa.func.now()))
            if cause is not None:
                await work.first_delivery()

    async def _end(self, connection: AsyncConnection, run: RunState) -> bool:
        """Record the end once; False when it was recorded before."""
        usage = run.end.get("usage") or {}
        changed = {
            "status": str(run.phase),
            "attempt": run.attempt,
            "code": run.end.get("code"),
            "ended_at_ms": to_ms(self._clock.now()),
            "first_text_ms": run.end.get("first_text_ms"),
            "duration_ms": run.end.get("duration_ms"),
            "input_tokens": usage.get("input_tokens"),
            "output_tokens": usage.get("output_tokens"),
            "touched_at": sa.func.now(),
            "due_at": None,
        }
        update = runs.update().where(runs.c.run_id == run.run_id, runs.c.status.in_(OPEN)).values(changed)
        ended = await connection.scalar(update.returning(runs.c.run_id)) is not None
        await connection.execute(pending_texts.delete().where(pending_texts.c.run_id == run.run_id))
        return ended

    async def _use_thread(self, work: UnitOfWork, row: RunRow, status: str) -> None:
        changed = {"updated_at_ms": to_ms(self._clock.now()), "last_run_id": row.run_id, "last_run_status": status}
        await work.connection.execute(threads.update().where(threads.c.thread_id == row.thread_id).values(changed))

    def _fact(self, row: RunRow, run: RunState) -> RunFinished | RunFailed:
        common: dict[str, Any] = {
            "tenant": row.tenant,
            "run_id": row.run_id,
            "thread_id": row.thread_id,
            "instance_id": row.instance_id,
            "attempt": max(run.attempt, 1),
            "at_ms": to_ms(self._clock.now()),
        }
        if run.phase is RunPhase.FAILED:
            code, retryable = str(run.end.get("code", "internal")), bool(run.end.get("retryable", True))
            return RunFailed(**common, code=code, retryable=retryable)
        usage = run.end.get("usage") or {}
        return RunFinished(
            **common,
            first_text_ms=run.end.get("first_text_ms"),
            duration_ms=int(run.end.get("duration_ms") or 0),
            input_tokens=usage.get("input_tokens"),
            output_tokens=usage.get("output_tokens"),
        )

    # --- housekeeping

    async def find(self, run_id: str) -> RunRow | None:
        async with self._database.connect() as connection:
            row = (await connection.execute(RUN_QUERY.where(runs.c.run_id == run_id))).first()
        return None if row is None else run_row(row)

    async def orphans(self, older_than_s: int) -> Sequence[RunRow]:
        has_text = pending_texts.c.run_id.is_not(None)
        return await self._old(older_than_s, runs.c.status == "accepted", has_text)

    async def stale(self, older_than_s: int) -> Sequence[RunRow]:
        free = sa.or_(threads.c.lease_expires_at.is_(None), threads.c.lease_expires_at < sa.func.now())
        # The text of an accepted run goes when the log holds it: from then on somebody has to bring it to its end.
        logged = sa.or_(runs.c.status == "running", pending_texts.c.run_id.is_(None))
        return await self._old(older_than_s, runs.c.status.in_(OPEN), logged, free)

    async def _old(self, older_than_s: int, *conditions: sa.ColumnElement[bool]) -> Sequence[RunRow]:
        """Runs that nobody touched for so long; a parked one is a job that is still to be done."""
        old = runs.c.touched_at < sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
        query = RUN_QUERY.where(runs.c.due_at.is_(None), old, *conditions).order_by(runs.c.touched_at).limit(100)
        async with self._database.connect() as connection:
            return [run_row(row) for row in (await connection.execute(query)).all()]


def _quiet(lease: Lease, run: RunState) -> sa.ColumnElement[bool]:
    """A run that ended in the log and not yet in its row must still be found by folding."""
    others = sa.and_(runs.c.thread_id == lease.thread_id, runs.c.run_id != run.run_id, runs.c.status.in_(OPEN))
    held = sa.and_(threads.c.thread_id == lease.thread_id, threads.c.lease_fence == lease.fence)
    return sa.and_(held, ~sa.exists().where(others))


async def check_fence(connection: AsyncConnection, lease: Lease) -> None:
    """Lock the thread; raises LeaseLost when the lease is another's by now."""
    query = sa.select(threads.c.lease_fence).where(threads.c.thread_id == lease.thread_id).with_for_update()
    if await connection.scalar(query) != lease.fence:
        raise LeaseLost("another worker took this thread", thread_id=lease.thread_id)


def run_row(row: Any) -> RunRow:
    """What a row of RUN_QUERY says."""
    return RunRow(
        tenant=row.tenant,
        thread_id=row.thread_id,
        run_id=row.run_id,
        instance_id=row.instance_id,
        session_key=row.session_key,
        message_id=row.message_id,
        text=row.text,
        ended=row.status not in OPEN,
        quiet=row.quiet_sequence,
        accepted=bool(row.accepted),
        parked=row.due_at is not None,
        due=bool(row.due),
        began_ms=row.began_at_ms,
        woken_at=row.woken_at,
        touched_at=row.touched_at,
        cause=row.cause or {},
    )
