"""The same rules on a real Postgres: races, rollbacks, read models, and what leaves by the outbox."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hatchery_api import queries
from hatchery_api.adapters.changes import ProcessChanges
from hatchery_api.adapters.sql import SqlStore
from hatchery_api.adapters.tables import metadata
from hatchery_api.domain.errors import IdempotencyMismatch
from hatchery_api.domain.operations import Kind
from hatchery_api.handlers import intents, projections, sweeper
from hatchery_api.handlers.intents import Wish
from hatchery_api.main import service
from hatchery_api.ports import RequestKey
from hatchery_common.bus.delivery import Delivery
from hatchery_common.clock import FixedClock, SystemClock
from hatchery_common.contracts.instances import (
    DesiredState,
    InstanceDeleted,
    InstanceStarted,
    InstanceState,
    InstanceStatus,
)
from hatchery_common.contracts.operations import InstanceOperationFinished
from hatchery_common.contracts.threads import RunFinished, RunStarted
from hatchery_common.database import Database, outbox
from hatchery_common.errors import OwnershipLost
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.postgres import fresh_database

ME = {"X-OA-Internal-Key": "oa-internal-key-0123456789", "X-OA-User-Id": "ada"}
CLOCK = SystemClock()


@pytest.fixture
async def database(postgres):
    async with fresh_database(postgres, service) as databases:
        yield databases["api"]


@pytest.fixture
def store(database):
    return SqlStore(database)


async def sent(database, verb):
    async with database.connect() as connection:
        rows = await connection.execute(sa.select(outbox.c.subject).where(outbox.c.subject.like(f"cmd.%.{verb}.%")))
        return [row.subject for row in rows]


async def count(database, table):
    async with database.connect() as connection:
        return await connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))


def key(name, body="h"):
    return RequestKey("t1", "openclaw createInstance", name, body)


async def test_the_migrated_schema_is_the_one_in_the_code(database):
    async with database.connect() as connection:
        found = await connection.run_sync(_columns)
    wanted = {
        (table.name, column.name, column.nullable) for table in metadata.sorted_tables for column in table.columns
    }
    assert found == wanted


def _columns(connection):
    looked = sa.inspect(connection)
    names = [name for name in looked.get_table_names() if name != "alembic_version"]
    return {(name, column["name"], column["nullable"]) for name in names for column in looked.get_columns(name)}


async def test_twenty_provisions_at_once_are_one_claim_and_one_command(database, store):
    keys = [None] * 8 + [key("same")] * 6 + [key(f"k{number}") for number in range(6)]
    wishes = [Wish("t1", "default", Kind.PROVISION, key=one) for one in keys]
    outcomes = await asyncio.gather(*(intents.request(wish, store=store, clock=CLOCK) for wish in wishes))
    assert len({outcome.sight.claim.instance_id for outcome in outcomes}) == 1
    assert len({outcome.operation.operation_id for outcome in outcomes}) == 1
    assert len(await sent(database, "provision")) == 1
    assert [await count(database, table) for table in ("claims", "operations", "idempotency")] == [1, 1, 7]


async def test_other_bodies_race_for_a_key_and_one_wins(database, store):
    wishes = [Wish("t1", f"name{number}", Kind.PROVISION, key=key("same", f"h{number}")) for number in range(6)]
    results = await asyncio.gather(
        *(intents.request(wish, store=store, clock=CLOCK) for wish in wishes), return_exceptions=True
    )
    assert sum(isinstance(result, IdempotencyMismatch) for result in results) == 5
    assert len(await sent(database, "provision")) == 1


async def test_generations_grow_in_the_order_of_the_outbox(database, store):
    await intents.request(Wish("t1", "default", Kind.PROVISION), store=store, clock=CLOCK)
    kinds = [Kind.STOP, Kind.START, Kind.RESTART] * 4
    await asyncio.gather(*(intents.request(Wish("t1", "default", kind), store=store, clock=CLOCK) for kind in kinds))
    async with database.connect() as connection:
        rows = await connection.execute(sa.select(outbox.c.payload).order_by(outbox.c.id))
        generations = [int(bytes(row.payload).split(b'"generation":')[1].split(b",")[0].rstrip(b"}")) for row in rows]
    assert generations == list(range(1, len(generations) + 1))


async def test_a_key_older_than_thirty_days_may_be_used_anew(store):
    clock = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
    wish = Wish("t1", "default", Kind.PROVISION, key=key("k"))
    assert not (await intents.request(wish, store=store, clock=clock)).replayed
    assert (await intents.request(wish, store=store, clock=clock)).replayed
    assert await sweeper.forget_keys(store=store, clock=clock) == 0
    clock.at = datetime(2026, 2, 2, tzinfo=UTC)
    assert not (await intents.request(wish, store=store, clock=clock)).replayed
    clock.at = datetime(2026, 4, 2, tzinfo=UTC)
    assert await sweeper.forget_keys(store=store, clock=clock) == 1


def delivery(message, number):
    return Delivery(
        message, f"evt_{number}", message.message_type(), message.tenant, message.subject, "x", CLOCK.now(), "EVT", number
    )  # fmt: skip


async def test_events_feed_the_read_models_once(database, store):
    outcome = await intents.request(Wish("t1", "default", Kind.PROVISION), store=store, clock=CLOCK)
    operation_id = outcome.operation.operation_id
    ids = {"tenant": "t1", "instance_id": outcome.operation.instance_id}
    tools = {"store": store, "changes": ProcessChanges()}

    def told(kind, status, version):
        state = InstanceState(
            **ids, name="default", version=version, generation=1, desired=DesiredState.RUNNING, status=status,
            since_ms=1, operation_id=operation_id, driver="process", created_at_ms=1, updated_at_ms=1,
        )  # fmt: skip
        return kind(**ids, state=state)

    ready = delivery(told(InstanceStarted, InstanceStatus.READY, 3), 1)
    await projections.project_instance(ready, **tools)
    await projections.project_instance(ready, **tools)
    await projections.project_instance(delivery(told(InstanceStarted, InstanceStatus.ERROR, 2), 2), **tools)
    end = delivery(InstanceOperationFinished(**ids, operation_id=operation_id, generation=1), 3)
    await projections.end_operation(end, **tools)
    async with store.read() as reads:
        sight = await queries.look(reads, "t1", "default")
        events = await reads.operations.events(operation_id, 0, 10)
    assert (sight.state.status, sight.state.version, sight.newest.state) == ("ready", 3, "finished")
    assert [(event.number, event.type) for event in events] == [(1, "accepted"), (2, "status"), (3, "finished")]
    await projections.project_instance(delivery(told(InstanceDeleted, InstanceStatus.DELETED, 4), 4), **tools)
    assert await count(database, "claims") == 0


async def test_a_run_that_ended_stays_ended(store):
    ids = {"tenant": "t1", "run_id": "run_1", "thread_id": "thd_1", "instance_id": "ins_1"}
    await projections.project_run(delivery(RunFinished(**ids, at_ms=5), 1), store=store)
    await projections.project_run(delivery(RunStarted(**ids, at_ms=4), 2), store=store)
    async with store.read() as reads:
        assert (await reads.runs.find("t1", "run_1")).status == "finished"


async def test_a_stale_owner_marks_nothing(store):
    await intents.request(Wish("t1", "default", Kind.PROVISION), store=store, clock=CLOCK)
    late = FixedClock(datetime(2100, 1, 1, tzinfo=UTC))
    tools = {"store": store, "clock": late, "changes": ProcessChanges()}
    with pytest.raises(OwnershipLost):
        await sweeper.mark_overdue(**tools, epoch=7)
    assert await sweeper.mark_overdue(**tools) == 1


async def test_equal_posts_at_once_are_one_run_and_one_command(open_world, database, store):
    async with open_world(store) as world:
        await world.client.post("/api/openclaw/instance", headers=ME)
        thread = (await world.client.post("/api/threads", headers=ME)).json()["data"]["thread_id"]
        path, headers = f"/api/threads/{thread}/messages", {**ME, "Idempotency-Key": "k"}
        answers = await asyncio.gather(
            *(world.client.post(path, headers=headers, json={"text": "hi"}) for _ in range(6))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["data"]["run_id"] for answer in answers}) == 1
        assert len(world.calls.submitted) == len(await sent(database, "post")) == await count(database, "runs") == 1


async def test_a_provision_costs_one_look_and_one_short_transaction(open_world, database, store):
    statements, commits = [], []
    engine = database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    sa.event.listen(engine, "commit", commits.append)
    async with open_world(store) as world:
        await world.client.get("/api/me", headers=ME)
        statements.clear()
        commits.clear()
        assert (await world.client.post("/api/openclaw/instance", headers=ME)).status_code == 202
    assert len(commits) == 1
    assert len(statements) <= 8, statements


async def test_twenty_requests_over_http_make_one_user_and_one_machine(open_world, database, store):
    async with open_world(store) as world:
        headers = [{**ME, **({"Idempotency-Key": f"k{number % 3}"} if number % 2 else {})} for number in range(20)]
        answers = await asyncio.gather(*(world.client.post("/openclaw/instance", headers=one) for one in headers))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["data"]["operation_id"] for answer in answers}) == 1
        assert len(await sent(database, "provision")) == 1
        assert len(await sent(database, "open")) == 1


async def test_without_postgres_the_answer_is_503_and_says_so(open_world):
    away = Database(f"postgresql://u:p@127.0.0.1:{free_port()}/none", "api")
    async with open_world(SqlStore(away)) as world:
        answer = await world.client.post("/api/openclaw/instance", headers=ME)
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("openclaw createInstance authenticate: Postgres does not answer")
    await away.close()


async def test_a_flood_on_one_claim_waits_and_joins(open_world, store):
    async with open_world(store) as world:
        answers = await asyncio.gather(*(world.client.post("/api/openclaw/instance", headers=ME) for _ in range(64)))
        assert {answer.status_code for answer in answers} == {202}
