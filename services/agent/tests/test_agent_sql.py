"""Threads, leases and runs on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hatchery_agent.adapters.sql import metadata, pending_texts, runs
from hatchery_agent.adapters.sql_runs import SqlRuns
from hatchery_agent.adapters.sql_threads import SqlLeases, SqlThreads
from hatchery_agent.domain.errors import LeaseLost, MessageExpired
from hatchery_agent.domain.folding import RunPhase, RunState
from hatchery_agent.handlers.ending import NEVER_POSTED
from hatchery_agent.handlers.threads import create_thread
from hatchery_agent.main import service
from hatchery_agent.ports import Checkpoint, Held, Lease
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import CreateThreadRequest, ListThreadsRequest, SubmitMessageRequest, ThreadView
from hatchery_common.database import Database, outbox
from hatchery_common.errors import Conflict, InvalidInput, NotFound
from hatchery_common.testing.postgres import PostgresServer, fresh_database


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncGenerator[Database]:
    async with fresh_database(postgres, service) as databases:
        yield databases["agent"]


@pytest.fixture
def threads(database: Database) -> SqlThreads:
    return SqlThreads(database, SystemClock())


@pytest.fixture
def rows(database: Database) -> SqlRuns:
    return SqlRuns(database, SystemClock())


async def created(threads: SqlThreads, tenant: str = "ta", key: str | None = "k") -> ThreadView:
    return await threads.create(CreateThreadRequest(tenant=tenant, instance_id="ins_1", client_key=key))


def message(thread: ThreadView, run_id: str = "run_1", text: str = "Hi", tenant: str = "ta") -> SubmitMessageRequest:
    return SubmitMessageRequest(
        tenant=tenant, thread_id=thread.thread_id, run_id=run_id, message_id=f"msg_{run_id}", text=text
    )


async def scalar(database: Database, query: sa.Select) -> object:
    async with database.connect() as connection:
        return await connection.scalar(query)


async def types(database: Database) -> list[str]:
    async with database.connect() as connection:
        found = (await connection.execute(sa.select(outbox.c.headers).order_by(outbox.c.id))).scalars()
        return [headers["ce-type"] for headers in found]


async def test_the_migrated_schema_is_the_declared_one(database: Database):
    def differences(connection: sa.Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.connect() as connection:
        found = await connection.run_sync(differences)
    assert [item for item in found if "alembic_version" not in str(item)] == []


async def test_the_same_client_key_is_the_same_thread_per_tenant(threads: SqlThreads):
    first = await created(threads)
    assert await created(threads) == first
    assert (await created(threads, "tb")).thread_id != first.thread_id
    assert (await created(threads, key=None)).thread_id != (await created(threads, key=None)).thread_id
    assert first.session_key == f"agent:main:hatch:{first.thread_id}"


async def test_a_thread_may_speak_in_a_given_session(threads: SqlThreads):
    request = CreateThreadRequest(
        tenant="ta", instance_id="ins_1", client_key="s", session_key="agent:main:whatsapp:+49"
    )
    first = await create_thread(request, threads=threads)
    assert first.session_key == "agent:main:whatsapp:+49"
    assert await create_thread(request, threads=threads) == first
    names = ("", "a b", "a\n", "a\u200bb", "\u202ax", "x\u00ad", "x" * 190)
    for wrong in ("", "main", "agent:main", "agent:MAIN:x", *(f"agent:main:{name}" for name in names)):
        with pytest.raises(InvalidInput, match="session_key"):
            await create_thread(request.model_copy(update={"session_key": wrong}), threads=threads)


async def test_a_thread_of_an_instance_that_is_gone_moves_once_its_runs_have_ended(
    threads: SqlThreads, database: Database
):
    thread = await created(threads)
    request = CreateThreadRequest(tenant="ta", instance_id="ins_2", client_key="k", replaces_instance_id="ins_1")
    elsewhere = request.model_copy(update={"replaces_instance_id": "ins_0"})
    assert (
        await threads.create(elsewhere)
        == await threads.create(elsewhere.model_copy(update={"instance_id": "x"}))
        == thread
    )
    await threads.submit(message(thread))
    with pytest.raises(Conflict, match="still to end"):
        await threads.create(request)
    async with database.unit_of_work() as work:
        await work.connection.execute(runs.update().values(status="failed"))
    moved = await threads.create(request)
    assert (moved.thread_id, moved.instance_id) == (thread.thread_id, "ins_2")
    assert await threads.create(request) == moved
    assert (await threads.submit(message(thread, "run_2"))).instance_id == "ins_2"


async def test_another_tenants_thread_is_not_found_wherever_it_is_named(threads: SqlThreads, database: Database):
    thread = await created(threads)
    with pytest.raises(NotFound):
        await threads.get("tb", thread.thread_id)
    with pytest.raises(NotFound):
        await threads.submit(message(thread, tenant="tb"))
    with pytest.raises(NotFound):
        await SqlLeases(database, 5).take("tb", thread.thread_id, "w")
    await threads.submit(message(thread))
    with pytest.raises(NotFound):
        await SqlRuns(database, SystemClock()).load("tb", "run_1")


async def test_pages_of_threads_hold_each_once_newest_first(threads: SqlThreads):
    made = [await created(threads, key=f"k{number}") for number in range(5)]
    await created(threads, tenant="tb")
    seen: list[str] = []
    place: str | None = None
    while True:
        page = await threads.list(ListThreadsRequest(tenant="ta", limit=2, before=place))
        seen += [thread.thread_id for thread in page.threads]
        if (place := page.next) is None:
            break
    assert sorted(seen) == sorted(thread.thread_id for thread in made)
    with pytest.raises(InvalidInput):
        await threads.list(ListThreadsRequest(tenant="ta", before="nonsense"))
    with pytest.raises(InvalidInput):
        await threads.list(ListThreadsRequest(tenant="ta", before=f"{10**30}:thd_1"))


async def test_a_message_is_stored_once_and_its_id_names_nothing_else(threads: SqlThreads, rows: SqlRuns):
    thread = await created(threads)
    assert (await threads.submit(message(thread))).status == "accepted"
    assert (await threads.submit(message(thread))).status == "known"
    assert (await rows.load("ta", "run_1")).text == "Hi"
    other = await created(threads, key="other")
    with pytest.raises(Conflict):
        await threads.submit(message(other))


async def test_twenty_submissions_at_once_store_one_message(threads: SqlThreads, database: Database):
    thread = await created(threads)
    answers = await asyncio.gather(*(threads.submit(message(thread)) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == ["accepted"] + ["known"] * 19
    assert await scalar(database, sa.select(sa.func.count()).select_from(runs)) == 1


async def test_a_lease_has_one_holder_and_a_rising_fence(threads: SqlThreads, database: Database):
    thread = await created(threads)
    leases = SqlLeases(database, 0.4)
    first = await leases.take("ta", thread.thread_id, "w1")
    assert isinstance(first, Lease)
    held = await leases.take("ta", thread.thread_id, "w2")
    assert isinstance(held, Held)
    assert 0 < held.remaining_s <= 0.4
    assert await leases.renew(first)
    await asyncio.sleep(0.5)
    assert await leases.renew(first), "expired but not taken is still ours"
    await asyncio.sleep(0.5)
    second = await leases.take("ta", thread.thread_id, "w2")
    assert isinstance(second, Lease)
    assert second.fence == first.fence + 1
    assert not await leases.renew(first)
    await leases.release(first)
    assert isinstance(await leases.take("ta", thread.thread_id, "w3"), Held), "a late release frees nothing"
    await leases.release(second)
    assert isinstance(await leases.take("ta", thread.thread_id, "w3"), Lease)


async def run_of(threads: SqlThreads, rows: SqlRuns, database: Database):
    thread = await created(threads)
    await threads.submit(message(thread))
    lease = await SqlLeases(database, 5).take("ta", thread.thread_id, "w1")
    assert isinstance(lease, Lease)
    return await rows.load("ta", "run_1"), lease


async def test_rows_and_facts_follow_a_run_and_its_text_goes(threads: SqlThreads, rows: SqlRuns, database: Database):
    row, lease = await run_of(threads, rows, database)
    await rows.queued("run_1")
    assert await scalar(database, sa.select(sa.func.count()).select_from(pending_texts)) == 0
    assert (await rows.load("ta", "run_1")).touched_at != row.touched_at, (
        "who listed it before sees that it was taken up"
    )
    await rows.started(row, lease, 1, cause=None)
    await rows.checkpoint("run_1", lease, Checkpoint(1, accepted=True, text_sequence=9))
    assert (await rows.load("ta", "run_1")).accepted
    end = {"duration_ms": 80, "first_text_ms": 20, "usage": {"input_tokens": 3, "output_tokens": 4}}
    run = RunState("run_1", phase=RunPhase.FINISHED, attempt=1, answer="Hello", end=end)
    for _ in range(2):
        await rows.settle(row, lease, run, quiet=12, cause=None)
    settled = await rows.load("ta", "run_1")
    assert (settled.ended, settled.quiet) == (True, 12)
    assert (await threads.get("ta", row.thread_id)).last_run_status == "finished"
    assert await types(database) == ["hatchery.run.started.v1", "hatchery.run.finished.v1"]


async def test_a_worker_without_the_fence_writes_no_row(threads: SqlThreads, rows: SqlRuns, database: Database):
    row, lease = await run_of(threads, rows, database)
    late = Lease(lease.tenant, lease.thread_id, "old", lease.fence - 1)
    with pytest.raises(LeaseLost):
        await rows.started(row, late, 1, cause=None)
    with pytest.raises(LeaseLost):
        await rows.checkpoint("run_1", late, Checkpoint(1, accepted=True, text_sequence=1))
    await rows.settle(row, late, RunState("run_1", phase=RunPhase.FAILED, end={"code": "x"}), quiet=99, cause=None)
    assert (await rows.load("ta", "run_1")).quiet == 0, "only the holder moves the fold's start"
    assert await types(database) == ["hatchery.run.failed.v1"]


async def test_the_fold_starts_before_every_run_whose_row_is_open(
    threads: SqlThreads, rows: SqlRuns, database: Database
):
    row, lease = await run_of(threads, rows, database)
    thread = await threads.get("ta", row.thread_id)
    await threads.submit(message(thread, "run_2"))
    await rows.settle(row, lease, RunState("run_1", phase=RunPhase.FAILED, end={"code": "x"}), quiet=9, cause=None)
    second = await rows.load("ta", "run_2")
    assert second.quiet == 0, "its end may be in the log already"
    await rows.settle(second, lease, RunState("run_2", phase=RunPhase.FAILED, end={"code": "x"}), quiet=12, cause=None)
    assert (await rows.load("ta", "run_2")).quiet == 12


async def test_a_message_that_expired_is_not_taken_again(threads: SqlThreads, rows: SqlRuns, database: Database):
    row, lease = await run_of(threads, rows, database)
    thread = await threads.get("ta", row.thread_id)
    answered = RunState("run_1", phase=RunPhase.FAILED, end={"code": "gave_up"})
    await rows.settle(row, lease, answered, quiet=None, cause=None)
    assert (await threads.submit(message(thread))).status == "known"
    await threads.submit(message(thread, "run_2"))
    never = RunState("run_2", phase=RunPhase.FAILED, end={"code": NEVER_POSTED.code})
    await rows.settle(await rows.load("ta", "run_2"), lease, never, quiet=None, cause=None)
    with pytest.raises(MessageExpired) as refused:
        await threads.submit(message(thread, "run_2"))
    assert (refused.value.code, refused.value.hint) == ("message_expired", "send it again as a new message")
    with pytest.raises(Conflict, match="another message"):
        await threads.submit(message(await created(threads, key="other"), "run_2"))


async def test_orphans_and_stale_runs_are_found(threads: SqlThreads, rows: SqlRuns, database: Database):
    row, lease = await run_of(threads, rows, database)
    thread = await threads.get("ta", row.thread_id)
    await threads.submit(message(thread, "run_2"))
    await rows.queued("run_1")
    await rows.started(row, lease, 1, cause=None)
    assert await rows.orphans(60) == []
    assert await rows.stale(0) == [], "its lease is alive"
    await SqlLeases(database, 5).release(lease)
    assert [found.run_id for found in await rows.stale(0)] == ["run_1"]
    await threads.submit(message(thread, "run_3"))
    await rows.queued("run_3")
    assert {found.run_id for found in await rows.stale(0)} == {"run_1", "run_3"}, "the log holds run_3, unstarted"
    assert await rows.orphans(100 * 365 * 86_400) == []
    assert [(found.run_id, found.text) for found in await rows.orphans(0)] == [("run_2", "Hi")]
    found = await rows.find("run_2")
    assert found is not None
    assert found.tenant == "ta"
    assert await rows.find("run_9") is None
