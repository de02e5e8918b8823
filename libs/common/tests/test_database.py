"""The unit of work, the inbox and the relay on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hatchery_common.bus.delivery import Delivery
from hatchery_common.bus.errors import BusUnavailable, UndeclaredMessage
from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow, PartialPublish
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.database import Database, outbox
from hatchery_common.errors import DependencyUnavailable, InvalidInput
from hatchery_common.log import get_logger
from hatchery_common.migrate import upgrade, version
from hatchery_common.outbox import BATCH, Relay
from hatchery_common.testing.example import metadata, open_account
from hatchery_common.testing.postgres import PostgresServer, scalar

MIGRATIONS = "hatchery_common.testing.example.migrations"


def delivery(event_id: str, tenant: str = "ta") -> Delivery[Any]:
    message = OpenAccount(tenant=tenant)
    return Delivery(
        message, event_id, message.message_type(), tenant, message.subject, "api", datetime.now(UTC), "CMD", 1
    )


class Stream:
    """A publisher that keeps rows, may fail after some, and may lose its end."""

    def __init__(self) -> None:
        self.rows: list[OutgoingRow] = []
        self.fail_after: int | None = None
        self.last = 10_000_000

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        if self.fail_after is not None:
            done = rows[: self.fail_after]
            self.rows += done
            raise PartialPublish("no leader", published=[len(self.rows) for _ in done], failed=rows[len(done)])
        start = len(self.rows)
        self.rows += rows
        return [start + number + 1 for number in range(len(rows))]

    async def stream_state(self, stream: str) -> StreamState:
        return StreamState(stream, "", 0, 0, 1, self.last, 0)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        return

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        return


async def test_migrations_equal_the_tables_in_the_code(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []
    assert (await version(database, MIGRATIONS)).is_current
    assert (await upgrade(database, MIGRATIONS)).is_current


async def test_a_delivery_takes_effect_once_however_often_it_comes(database: Database) -> None:
    await asyncio.gather(*(open_account(delivery("evt_1"), database=database) for _ in range(5)))
    await open_account(delivery("evt_1"), database=database)
    assert await scalar(database, "SELECT opened FROM notes") == 1
    assert await scalar(database, "SELECT count(*) FROM outbox") == 1


async def test_a_dead_letter_may_be_driven_again_and_a_done_one_not(database: Database) -> None:
    await database.mark_dead("evt_1", "t")
    await open_account(delivery("evt_1"), database=database)
    await open_account(delivery("evt_1"), database=database)
    assert await scalar(database, "SELECT opened FROM notes") == 1
    await database.mark_dead("evt_1", "t")
    assert await scalar(database, "SELECT outcome FROM inbox") == "done"


async def test_nothing_of_a_failed_transaction_stays(database: Database) -> None:
    with pytest.raises(ValueError, match="late"):
        async with database.unit_of_work(delivery("evt_1")) as work:
            assert await work.first_delivery()
            await work.emit(AccountOpened(tenant="ta", opened_at_ms=0))
            raise ValueError("late")
    assert await scalar(database, "SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM outbox)") == 0


async def test_undeclared_messages_are_refused_before_they_are_stored(database: Database) -> None:
    with pytest.raises(UndeclaredMessage):
        async with database.unit_of_work() as work:
            await work.emit(OpenAccount(tenant="ta"))


async def test_the_relay_publishes_in_order_and_marks_what_was_done(database: Database) -> None:
    stream = Stream()
    relay = Relay(database, stream, get_logger("test"))
    async with database.unit_of_work() as work:
        for number in range(5):
            await work.emit(AccountOpened(tenant=f"t{number}", opened_at_ms=0))
        await work.put_route(
            Route(instance_id="ins_a", tenant="t0", state=RouteState.STARTING, route_version=1, changed_at_ms=0)
        )
    stream.fail_after = 2
    with pytest.raises(BusUnavailable):
        await relay.publish_pending()
    stream.fail_after = None
    assert await relay.publish_pending() == 4
    assert await relay.publish_pending() == 0
    subjects = [row.subject for row in stream.rows]
    assert subjects == [f"evt.t{n}.account.opened.t{n}" for n in range(5)] + ["$KV.routes.ins_a"]


async def test_several_batches_are_published_once_each_and_in_order(database: Database) -> None:
    stream = Stream()
    relay = Relay(database, stream, get_logger("test"))
    count = 2 * BATCH + 7
    async with database.unit_of_work() as work:
        await work.emit_all([(AccountOpened(tenant=f"t{number}", opened_at_ms=0), None) for number in range(count)])
    assert await relay.publish_pending() == count
    assert [row.subject for row in stream.rows] == [f"evt.t{n}.account.opened.t{n}" for n in range(count)]
    assert await scalar(database, "SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0


async def test_rows_beyond_the_end_of_a_stream_are_published_again(database: Database) -> None:
    stream = Stream()
    relay = Relay(database, stream, get_logger("test"))
    async with database.unit_of_work() as work:
        for number in range(3):
            await work.emit(AccountOpened(tenant=f"t{number}", opened_at_ms=0))
    await relay.publish_pending()
    assert await relay.republish_holes() == 0
    stream.last = 1
    assert await relay.republish_holes() == 2
    assert await relay.publish_pending() == 2
    assert [row.subject for row in stream.rows[3:]] == ["evt.t1.account.opened.t1", "evt.t2.account.opened.t2"]


async def test_a_role_reaches_its_own_schema_only(postgres: PostgresServer, database: Database) -> None:
    admin = await asyncpg.connect(postgres.url)
    place = database.url.rsplit("/", 1)[1]
    await admin.close()
    owner = await asyncpg.connect(postgres.at(place))
    await owner.execute("CREATE SCHEMA other; CREATE TABLE other.secrets (a int)")
    await owner.close()
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        async with database.connect() as connection:
            await connection.execute(sa.text("SELECT * FROM other.secrets"))


async def test_an_error_of_the_block_is_not_taken_for_one_of_the_database(database: Database) -> None:
    for error in (FileNotFoundError("a file of the handler's"), TimeoutError("a call of the handler's")):
        with pytest.raises(type(error)):
            async with database.unit_of_work() as work:
                await work.emit(AccountOpened(tenant="ta", opened_at_ms=0))
                raise error
    assert await scalar(database, "SELECT count(*) FROM outbox") == 0


async def test_a_database_that_does_not_answer_is_a_dependency(database: Database) -> None:
    gone = Database("postgresql://nobody:none@127.0.0.1:1/none", "example")
    with pytest.raises(DependencyUnavailable):
        async with gone.unit_of_work():
            pass
    assert "does not answer" in (await gone.ping() or "")
    await gone.close()


async def test_the_outbox_keeps_ids_once(database: Database) -> None:
    async with database.unit_of_work() as work:
        for _ in range(2):
            await work.emit(AccountOpened(tenant="ta", opened_at_ms=0), id="evt_same")
    assert await scalar(database, "SELECT count(*) FROM outbox") == 1
    assert outbox.name == "outbox"


async def test_an_error_does_not_tell_what_was_to_be_written(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with database.unit_of_work() as work:
            await work.connection.execute(sa.text("INSERT INTO no_such_table VALUES (:text)"), {"text": "my secret"})
    assert "my secret" not in str(caught.value)


async def test_a_message_that_no_stream_takes_fails_its_transaction(database: Database) -> None:
    with pytest.raises(InvalidInput):
        async with database.unit_of_work() as work:
            await work.put_route(
                Route(
                    instance_id="ins_a",
                    tenant="t",
                    name="x" * 300_000,
                    state=RouteState.GONE,
                    route_version=1,
                    changed_at_ms=0,
                )
            )
    assert await scalar(database, "SELECT count(*) FROM outbox") == 0


async def test_an_outbox_that_stands_still_is_told(database: Database) -> None:
    assert await database.stale_outbox(30) is None
    async with database.unit_of_work() as work:
        await work.emit(AccountOpened(tenant="ta", opened_at_ms=0))
        await work.connection.execute(sa.text("UPDATE outbox SET created_at = now() - interval '1 minute'"))
    assert "waits for 60 s" in (await database.stale_outbox(30) or "")
