"""Parked runs on a real Postgres: who is due, in which order, and what news and leases do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hatchery_agent.adapters.sql import runs
from hatchery_agent.adapters.sql_parking import SqlParking
from hatchery_agent.adapters.sql_runs import SqlRuns
from hatchery_agent.adapters.sql_threads import SqlLeases, SqlThreads
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.domain.folding import RunPhase, RunState
from hatchery_agent.main import service
from hatchery_agent.ports import Lease, RunRow
from hatchery_common.bus import Delivery
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import CreateThreadRequest, PostMessage, SubmitMessageRequest
from hatchery_common.database import Database, inbox, outbox
from hatchery_common.testing.postgres import PostgresServer, fresh_database


@dataclass
class Rows:
    """The agent's tables through its adapters."""

    database: Database

    def __post_init__(self) -> None:
        self.threads = SqlThreads(self.database, SystemClock())
        self.runs = SqlRuns(self.database, SystemClock())
        self.parking = SqlParking(self.database)
        self.leases = SqlLeases(self.database, 0.5)

    async def submit(self, run_id: str, *, key: str = "k", instance: str = "ins_1") -> RunRow:
        thread = await self.threads.create(CreateThreadRequest(tenant="ta", instance_id=instance, client_key=key))
        await self.threads.submit(
            SubmitMessageRequest(
                tenant="ta", thread_id=thread.thread_id, run_id=run_id, message_id=f"msg_{run_id}", text="Hi"
            )
        )
        await self.runs.queued(run_id)
        return await self.runs.load("ta", run_id)

    async def lease(self, row: RunRow) -> Lease:
        lease = await self.leases.take("ta", row.thread_id, "w")
        assert isinstance(lease, Lease)
        return lease

    async def park(self, row: RunRow, look_s: float = 60, *, cause: Delivery[PostMessage] | None = None) -> None:
        lease = await self.lease(row)
        await self.parking.park(row, lease, began_ms=1_000, look_s=look_s, cause=cause)
        await self.leases.release(lease)

    async def due(self) -> list[str]:
        return [row.run_id for row in await self.parking.due(10)]

    async def all_of(self, query: sa.Select) -> list[object]:
        async with self.database.connect() as connection:
            return list((await connection.execute(query)).scalars())


@pytest.fixture
async def rows(postgres: PostgresServer) -> AsyncGenerator[Rows]:
    async with fresh_database(postgres, service) as databases:
        yield Rows(databases["agent"])


def command(row: RunRow) -> Delivery[PostMessage]:
    ids = {"tenant": row.tenant, "thread_id": row.thread_id, "run_id": row.run_id, "instance_id": row.instance_id}
    posted = PostMessage(**ids, message_id=row.message_id)
    kind, now = posted.message_type(), datetime.now(UTC)
    about = ("CMD", 7, 1, None, "op_1", f"00-{'a' * 32}-{'b' * 16}-01")
    return Delivery(posted, row.run_id, kind, row.tenant, posted.subject, "api", now, *about)


async def test_a_parked_run_becomes_due_by_time(rows: Rows):
    row = await rows.submit("run_1")
    assert await rows.parking.next_due_s() is None
    await rows.park(row, 60)
    left_s = await rows.parking.next_due_s()
    assert left_s is not None
    assert 0 < left_s <= 60
    parked = await rows.runs.load("ta", "run_1")
    assert (parked.parked, parked.due, parked.began_ms) == (True, False, 1_000)
    await rows.parking.postpone(row.thread_id, 0)
    assert await rows.due() == ["run_1"]
    assert (await rows.runs.load("ta", "run_1")).due
    await rows.parking.postpone(row.thread_id, 60)
    assert await rows.due() == []


async def test_news_makes_the_runs_of_its_instance_due_and_no_others(rows: Rows):
    for number, instance in enumerate(("ins_1", "ins_1", "ins_2")):
        await rows.park(await rows.submit(f"run_{number}", key=f"k{number}", instance=instance))
    assert not await rows.parking.wake("tb", "ins_1"), "of another tenant"
    assert not await rows.parking.wake("ta", "ins_3")
    assert await rows.parking.wake("ta", "ins_1")
    assert sorted(await rows.due()) == ["run_0", "run_1"]


async def test_news_between_the_look_and_the_row_is_not_lost(rows: Rows):
    row = await rows.submit("run_1")
    assert not await rows.parking.wake("ta", "ins_1"), "nobody is parked yet, but it is marked"
    await rows.park(row, 60)
    assert await rows.due() == ["run_1"]
    await rows.park(await rows.runs.load("ta", "run_1"), 60)
    assert await rows.due() == [], "news that the look has seen"


async def test_of_a_thread_the_oldest_comes_first_and_the_others_with_it(rows: Rows):
    first, second = await rows.submit("run_1"), await rows.submit("run_2")
    await rows.park(first, 60)
    lease = await rows.lease(second)
    await rows.parking.park_behind(second, lease, cause=None)
    await rows.leases.release(lease)
    assert await rows.due() == []
    await rows.parking.wake("ta", "ins_1")
    assert await rows.due() == ["run_1"]
    await rows.park(await rows.runs.load("ta", "run_1"), 60)
    assert await rows.due() == [], "the one behind does not come back on its own"
    lease = await rows.lease(first)
    end = RunState("run_1", phase=RunPhase.FAILED, end={"code": "x"})
    await rows.runs.settle(first, lease, end, quiet=None, cause=None)
    await rows.leases.release(lease)
    assert await rows.due() == ["run_2"]


async def test_whoever_holds_the_thread_has_the_run_until_the_lease_ends(rows: Rows):
    rows.leases = SqlLeases(rows.database, 3)
    row = await rows.submit("run_1")
    await rows.park(row, 0)
    await rows.lease(row)  # by a worker that dies now
    assert await rows.due() == []
    left_s = await rows.parking.next_due_s()
    assert left_s is not None
    assert 0 < left_s <= 3
    await asyncio.sleep(left_s)
    assert await rows.due() == ["run_1"]


async def test_parking_is_fenced(rows: Rows):
    row = await rows.submit("run_1")
    lease = await rows.lease(row)
    late = Lease(lease.tenant, lease.thread_id, "old", lease.fence - 1)
    with pytest.raises(LeaseLost):
        await rows.parking.park(row, late, began_ms=1, look_s=1, cause=None)
    with pytest.raises(LeaseLost):
        await rows.parking.park_behind(row, late, cause=None)
    assert not (await rows.runs.load("ta", "run_1")).parked


async def test_the_row_takes_the_job_over_with_its_cause(rows: Rows):
    row = await rows.submit("run_1")
    await rows.park(row, cause=command(row))
    assert await rows.all_of(sa.select(inbox.c.event_id)) == ["run_1"]
    kept = (await rows.runs.load("ta", "run_1")).cause
    assert (kept["id"], kept["correlation_id"]) == ("run_1", "op_1")
    await rows.park(row)
    assert (await rows.runs.load("ta", "run_1")).cause == kept


async def test_an_end_leaves_nothing_parked(rows: Rows):
    row = await rows.submit("run_1")
    await rows.park(row, 0)
    lease = await rows.lease(row)
    end = RunState("run_1", phase=RunPhase.FAILED, end={"code": "x"})
    await rows.runs.settle(row, lease, end, quiet=3, cause=None)
    await rows.leases.release(lease)
    assert await rows.due() == []
    assert await rows.parking.next_due_s() is None
    with pytest.raises(LeaseLost):
        await rows.park(row, 0)
    assert await rows.due() == [], "what has ended is not parked again"
    assert await rows.all_of(sa.select(outbox.c.event_id)) == ["run_1-end"]


async def test_an_ended_row_that_still_says_when_it_is_due_is_nobodys_job(rows: Rows):
    row, later = await rows.submit("run_1"), await rows.submit("run_2")
    moment = sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, sa.bindparam("in_s", type_=sa.Integer))
    for in_s in (-1, 60):
        left_behind = runs.update().where(runs.c.run_id == "run_1").values(status="failed", due_at=moment)
        async with rows.database.unit_of_work() as work:
            await work.connection.execute(left_behind, {"in_s": in_s})
        assert await rows.due() == []
        assert await rows.parking.next_due_s() is None
    async with rows.database.unit_of_work() as work:
        await work.connection.execute(left_behind, {"in_s": -1})
    lease = await rows.lease(row)
    await rows.parking.park_behind(later, lease, cause=None)
    await rows.parking.postpone(row.thread_id, 60)
    await rows.leases.release(lease)
    assert await rows.due() == [], "nor does the rest of its thread hang on it"


async def test_what_cannot_be_parked_changes_nothing_for_the_rest_of_its_thread(rows: Rows):
    first, second = await rows.submit("run_1"), await rows.submit("run_2")
    await rows.park(second)
    lease = await rows.lease(first)
    await rows.runs.settle(
        first, lease, RunState("run_1", phase=RunPhase.FAILED, end={"code": "x"}), quiet=9, cause=None
    )
    with pytest.raises(LeaseLost):
        await rows.parking.park(first, lease, began_ms=1, look_s=1, cause=None)
    with pytest.raises(LeaseLost):
        await rows.parking.park_behind(first, lease, cause=None)
    assert (await rows.runs.load("ta", "run_2")).parked


async def test_a_parked_run_is_neither_stale_nor_an_orphan(rows: Rows):
    row = await rows.submit("run_1")
    assert [found.run_id for found in await rows.runs.stale(0)] == ["run_1"]
    await rows.park(row)
    assert await rows.runs.stale(0) == []
    assert await rows.runs.orphans(0) == []
