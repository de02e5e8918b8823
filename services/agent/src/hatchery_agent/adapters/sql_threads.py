"""Threads, submissions and leases in Postgres."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import (
    CreateThreadRequest,
    ListThreadsRequest,
    ListThreadsResponse,
    SubmitMessageRequest,
    SubmitMessageResponse,
    ThreadView,
)
from hatchery_common.database import Database
from hatchery_common.errors import Conflict, InvalidInput, NotFound
from hatchery_common.ids import thread_id as make_thread_id
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_agent.adapters.sql import OPEN, pending_texts, runs, threads
from hatchery_agent.domain.errors import MessageExpired
from hatchery_agent.ports import Held, Lease

MAX_WAITING = 50  # messages of one thread that wait for their answer


class SqlThreads:
    """Threads and SubmitMessage on one schema."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, request: CreateThreadRequest) -> ThreadView:
        thread_id = make_thread_id(request.tenant, request.client_key)
        now_ms = to_ms(self._clock.now())
        row = {
            "thread_id": thread_id,
            "tenant": request.tenant,
            "instance_id": request.instance_id,
            "title": request.title,
            "kind": "openclaw",
            "session_key": request.session_key or f"agent:main:hatch:{thread_id}",
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        async with self._database.unit_of_work() as work:
            await work.connection.execute(insert(threads).values(row).on_conflict_do_nothing())
            if request.replaces_instance_id is not None:
                await self._move(work.connection, thread_id, request)
        return await self.get(request.tenant, thread_id)

    async def _move(self, connection: AsyncConnection, thread_id: str, request: CreateThreadRequest) -> None:
        """Bind the thread to its new instance; not while runs are open, whose commands and turns name the old one."""
        thread = await _thread(connection, request.tenant, thread_id, lock=True)
        if thread.instance_id != request.replaces_instance_id:
            return
        if await _open_runs(connection, thread_id):
            hint = "repeat this when they have ended"
            raise Conflict("answers of this thread on its old instance are still to end", hint=hint)
        moved = {"instance_id": request.instance_id, "updated_at_ms": to_ms(self._clock.now())}
        await connection.execute(threads.update().where(threads.c.thread_id == thread_id).values(moved))

    async def get(self, tenant: str, thread_id: str) -> ThreadView:
        async with self._database.connect() as connection:
            return _view(await _thread(connection, tenant, thread_id))

    async def list(self, request: ListThreadsRequest) -> ListThreadsResponse:
        query = sa.select(threads).where(threads.c.tenant == request.tenant)
        if request.before is not None:
            place = sa.tuple_(threads.c.updated_at_ms, threads.c.thread_id)
            query = query.where(place < sa.tuple_(*_place(request.before)))
        query = query.order_by(threads.c.updated_at_ms.desc(), threads.c.thread_id.desc()).limit(request.limit + 1)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        shown = tuple(_view(row) for row in rows[: request.limit])
        more = len(rows) > request.limit
        return ListThreadsResponse(
            threads=shown, next=f"{shown[-1].updated_at_ms}:{shown[-1].thread_id}" if more else None
        )

    async def submit(self, request: SubmitMessageRequest) -> SubmitMessageResponse:
        async with self._database.unit_of_work() as work:
            connection = work.connection
            thread = await _thread(connection, request.tenant, request.thread_id, lock=True)
            known = await self._known(connection, request)
            if not known:
                await self._store(connection, request)
        return SubmitMessageResponse(
            thread_id=request.thread_id,
            run_id=request.run_id,
            message_id=request.message_id,
            instance_id=thread.instance_id,
            status="known" if known else "accepted",
        )

    async def _known(self, connection: AsyncConnection, request: SubmitMessageRequest) -> bool:
        found = (await connection.execute(sa.select(runs).where(runs.c.run_id == request.run_id))).first()
        if found is None:
            return False
        named = (found.tenant, found.thread_id, found.message_id)
        if named != (request.tenant, request.thread_id, request.message_id):
            raise Conflict("this run id names another message", hint="use a new id for a new message")
        if found.code == MessageExpired.code:
            hint = "send it again as a new message"
            raise MessageExpired("this message was stored before and not posted in time", hint=hint)
        return True

    async def _store(self, connection: AsyncConnection, request: SubmitMessageRequest) -> None:
        if await _open_runs(connection, request.thread_id) >= MAX_WAITING:
            raise Conflict(f"{MAX_WAITING} messages of this thread wait for an answer", hint="wait for some of them")
        now_ms = to_ms(self._clock.now())
        run: dict[str, Any] = {
            "run_id": request.run_id,
            "tenant": request.tenant,
            "thread_id": request.thread_id,
            "message_id": request.message_id,
            "status": "accepted",
            "created_at_ms": now_ms,
        }
        await connection.execute(insert(runs).values(run))
        await connection.execute(insert(pending_texts).values(run_id=request.run_id, text=request.text))
        used = {"updated_at_ms": now_ms, "last_run_id": request.run_id, "last_run_status": "accepted"}
        await connection.execute(threads.update().where(threads.c.thread_id == request.thread_id).values(used))


class SqlLeases:
    """The lease columns of a thread's row; time is Postgres's own."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self._until = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, lease_s)

    async def take(self, tenant: str, thread_id: str, holder: str) -> Lease | Held:
        free = sa.or_(threads.c.lease_expires_at.is_(None), threads.c.lease_expires_at <= sa.func.clock_timestamp())
        mine = sa.and_(threads.c.thread_id == thread_id, threads.c.tenant == tenant)
        taken = {"lease_fence": threads.c.lease_fence + 1, "lease_holder": holder, "lease_expires_at": self._until}
        async with self._database.unit_of_work() as work:
            update = threads.update().where(mine, free).values(taken).returning(threads.c.lease_fence)
            fence = await work.connection.scalar(update)
            if fence is not None:
                return Lease(tenant, thread_id, holder, int(fence))
            remaining = sa.extract("epoch", threads.c.lease_expires_at - sa.func.clock_timestamp())
            left = (await work.connection.execute(sa.select(remaining).where(mine))).first()
        if left is None:
            raise NotFound("there is no such thread", thread_id=thread_id)
        return Held(float(left[0] or 0))

    async def renew(self, lease: Lease) -> bool:
        update = threads.update().where(_held(lease)).values(lease_expires_at=self._until)
        async with self._database.unit_of_work() as work:
            return await work.connection.scalar(update.returning(threads.c.lease_fence)) is not None

    async def release(self, lease: Lease) -> None:
        update = threads.update().where(_held(lease)).values(lease_expires_at=None, lease_holder=None)
        async with self._database.unit_of_work() as work:
            await work.connection.execute(update)


def _held(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(threads.c.thread_id == lease.thread_id, threads.c.lease_fence == lease.fence)


async def _thread(connection: AsyncConnection, tenant: str, thread_id: str, *, lock: bool = False) -> sa.Row[Any]:
    query = sa.select(threads).where(threads.c.thread_id == thread_id, threads.c.tenant == tenant)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        raise NotFound("there is no such thread", thread_id=thread_id)
    return row


async def _open_runs(connection: AsyncConnection, thread_id: str) -> int:
    query = sa.select(sa.func.count()).where(runs.c.thread_id == thread_id, runs.c.status.in_(OPEN))
    return int(await connection.scalar(query) or 0)


def _view(row: sa.Row[Any]) -> ThreadView:
    return ThreadView.model_validate({name: getattr(row, name) for name in ThreadView.model_fields})


def _place(before: str) -> tuple[int, str]:
    updated, separator, thread_id = before.partition(":")
    if not separator or not updated.isdigit() or len(updated) > 18:
        raise InvalidInput("`before` is not a place in the list", hint="pass `next` of the previous page")
    return int(updated), thread_id
