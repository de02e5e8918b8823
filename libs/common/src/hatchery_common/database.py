"""Postgres: one engine per service on its own schema, the unit of work, and the tables every service has.

State change, inbox row and outbox rows are one transaction: `async with database.unit_of_work(...) as work`.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hatchery_common.bus.delivery import Cause, Delivery
from hatchery_common.bus.envelope import encode
from hatchery_common.bus.errors import UndeclaredMessage
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.routes import Route, route_subject
from hatchery_common.errors import DependencyUnavailable, InvalidInput, OwnershipLost
from hatchery_common.failpoints import reach
from hatchery_common.ids import new_id
from hatchery_common.timers import Wake

_IDLE_IN_TRANSACTION_MS = 10_000
_common = sa.MetaData()
MAX_PAYLOAD_BYTES = 200 * 1024  # streams take 256 KiB with headers

outbox = sa.Table(
    "outbox",
    _common,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("headers", JSONB, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("published_at", sa.DateTime(timezone=True)),
    sa.Column("stream_sequence", sa.BigInteger),
    sa.Index("outbox_unpublished", "id", postgresql_where=sa.text("published_at IS NULL")),
)
inbox = sa.Table(
    "inbox",
    _common,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False, server_default="done"),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("outcome IN ('done', 'dead')", name="inbox_outcome"),
)
owner = sa.Table(
    "owner",
    _common,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("holder", sa.Text),
    sa.Column("elected_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("one", name="owner_one_row"),
)

quarantine = sa.Table(
    "quarantine",
    _common,
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("begun", sa.Integer, nullable=False, server_default="1"),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

known_streams = sa.Table(
    "known_streams",
    _common,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("created", sa.Text, nullable=False),  # as the server gives it: another one is another stream
)


def common_tables(metadata: sa.MetaData) -> None:
    """Add the tables that every service has to its metadata, so that its migrations can be compared with it."""
    for table in _common.sorted_tables:
        table.to_metadata(metadata)


@contextmanager
def translated(what: str) -> Any:
    """Turn a lost or refused connection into DependencyUnavailable; other errors of the database, and of the block, pass."""
    try:
        yield
    except (
        OperationalError,
        InterfaceError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        PoolTimeout,
        OSError,
        TimeoutError,
    ) as error:
        if isinstance(error, OSError) and not _passed_a_driver(error):  # TimeoutError is one, too
            raise
        raise DependencyUnavailable(f"Postgres does not answer while {what}: {type(error).__name__}") from error
    except DBAPIError as error:
        if error.connection_invalidated or _is_outage(error.orig):
            raise DependencyUnavailable(f"Postgres went away while {what}") from error
        raise
    except asyncpg.PostgresError as error:  # connecting is not wrapped by SQLAlchemy
        if _is_outage(error):
            raise DependencyUnavailable(f"Postgres went away while {what}: {type(error).__name__}") from error
        raise


def _passed_a_driver(error: OSError) -> bool:
    """Whether it came out of a call of the database: a file that the block does not find is no outage of Postgres."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith(("sqlalchemy.", "asyncpg.")) for frame in frames)


def _is_outage(error: BaseException | None) -> bool:
    """Whether SQLSTATE says that the server is going down, starting, full, or chose us to lose (retry)."""
    state = str(getattr(error, "sqlstate", "") or "")
    return state.startswith(("08", "53", "57P")) or state in {"40001", "40P01", "25P03"}


class UnitOfWork:
    """One transaction with its inbox row and its outgoing messages."""

    def __init__(
        self, connection: AsyncConnection, source: str, produces: frozenset[type[Message]], cause: Delivery[Any] | None
    ) -> None:
        self.connection = connection
        self.emitted = 0
        self._source = source
        self._produces = produces
        self._cause = cause

    async def first_delivery(self) -> bool:
        """Record the cause in the inbox; False when an earlier transaction already did (then do nothing more)."""
        if self._cause is None:
            msg = "first_delivery needs the delivery as `cause`"
            raise RuntimeError(msg)
        return await self.record(self._cause)

    async def record(self, delivery: Delivery[Any]) -> bool:
        """Record one delivery as done; False when it was already. A dead one is done now (it was re-driven)."""
        row = insert(inbox).values(event_id=delivery.id, type=delivery.type, outcome="done")
        row = row.on_conflict_do_update(
            index_elements=[inbox.c.event_id], set_={"outcome": "done"}, where=inbox.c.outcome == "dead"
        )
        result = await self.connection.execute(row.returning(inbox.c.event_id))
        return result.first() is not None

    async def emit(
        self,
        message: Message,
        *,
        id: str | None = None,  # noqa: A002
        cause: Delivery[Any] | Cause | None = None,
    ) -> str:
        """Queue a message for publication with this transaction; returns its id. Call it after the aggregate's row is locked."""
        if type(message) not in self._produces:
            raise UndeclaredMessage(f"{self._source} does not declare {message.message_type()} in `produces`")
        event_id = id or new_id("evt")
        subject, headers, payload = encode(message, id=event_id, source=self._source, cause=cause or self._cause)
        await self._queue(event_id, subject, headers, payload)
        return event_id

    async def emit_all(self, messages: Sequence[tuple[Message, Delivery[Any] | None]]) -> None:
        """Queue many messages, each with its own cause, in their order and in one round trip."""
        rows: list[dict[str, Any]] = []
        for message, cause in messages:
            if type(message) not in self._produces:
                raise UndeclaredMessage(f"{self._source} does not declare {message.message_type()} in `produces`")
            event_id = new_id("evt")
            subject, headers, payload = encode(message, id=event_id, source=self._source, cause=cause or self._cause)
            _require_sendable(subject, payload)
            rows.append({"event_id": event_id, "subject": subject, "headers": headers, "payload": payload})
        if rows:
            await self.connection.execute(insert(outbox), rows)
            self.emitted += len(rows)

    async def put_route(self, route: Route) -> None:
        """Queue a put of the route into the routes bucket with this transaction."""
        event_id = f"{route.instance_id}-route-{route.route_version}"
        await self._queue(event_id, route_subject(route.instance_id), {}, route.model_dump_json().encode())

    async def _queue(self, event_id: str, subject: str, headers: dict[str, str], payload: bytes) -> None:
        _require_sendable(subject, payload)
        row = {"event_id": event_id, "subject": subject, "headers": headers, "payload": payload}
        await self.connection.execute(insert(outbox).values(row).on_conflict_do_nothing(index_elements=["event_id"]))
        self.emitted += 1


def _require_sendable(subject: str, payload: bytes) -> None:
    """A row that no stream takes would block the relay for ever, so the transaction that makes it fails instead."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidInput(f"{subject} would carry {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")


class Database:
    """A service's own schema in Postgres, reached under its own role."""

    def __init__(self, url: str, schema: str, *, produces: frozenset[type[Message]] = frozenset(), pool_size: int = 4):
        self.url = url
        self.schema = schema
        self.outbox_wake = Wake()
        self.produces = produces
        self.engine: AsyncEngine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://", 1),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_recycle=1800,
            hide_parameters=True,  # errors go to logs and dead letters, which must hold no text of users
            pool_pre_ping=True,  # a restart of Postgres must cost no request
            connect_args={
                "timeout": 5,
                "command_timeout": 30,
                "server_settings": {
                    "search_path": schema,
                    "application_name": f"hatchery-{schema}",
                    # a process that is frozen within a transaction must not hold the owner's row for ever
                    "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_MS),
                },
            },
        )

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[AsyncConnection]:
        """A connection for reads; rolled back at the end."""
        with translated("reading"):
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def unit_of_work(
        self, cause: Delivery[Any] | None = None, *, epoch: int | None = None
    ) -> AsyncGenerator[UnitOfWork]:
        """One transaction; committed when the block ends, rolled back when it raises.

        With `epoch` it raises OwnershipLost unless that is still the elected one (a late write of a frozen process).
        Raises DependencyUnavailable when Postgres does not answer; then nothing, or everything, was committed: repeat by key.
        """
        with translated("writing"):
            async with self.engine.begin() as connection:
                if epoch is not None:
                    await self._fence(connection, epoch)
                work = UnitOfWork(connection, f"hatchery/{self.schema}", self.produces, cause)
                yield work
                reach(f"{self.schema}.before_commit")
        reach(f"{self.schema}.after_commit")
        if work.emitted:
            self.outbox_wake.set()

    async def _fence(self, connection: AsyncConnection, epoch: int) -> None:
        current = await connection.scalar(sa.select(owner.c.epoch).with_for_update(read=True))
        if current != epoch:
            raise OwnershipLost(f"epoch {epoch} of {self.schema} is over, {current} rules now")

    async def mark_dead(self, event_id: str, message_type: str) -> None:
        """Record that a message went to the dead letters, unless its effect is already done."""
        row = insert(inbox).values(event_id=event_id, type=message_type, outcome="dead").on_conflict_do_nothing()
        async with self.unit_of_work() as work:
            await work.connection.execute(row)

    async def stale_outbox(self, limit_s: float) -> str | None:
        """None while what was committed is published within the limit, else one sentence."""
        oldest = sa.select(sa.extract("epoch", sa.func.now() - sa.func.min(outbox.c.created_at)))
        try:
            async with asyncio.timeout(5), self.connect() as connection:
                age = await connection.scalar(oldest.where(outbox.c.published_at.is_(None)))
        except (DependencyUnavailable, TimeoutError):
            return None  # that is the other check's to say
        if age is None or float(age) <= limit_s:
            return None
        return (
            f"the oldest unpublished message waits for {float(age):.0f} s: see this service's log for `outbox.waiting`"
        )

    async def ping(self) -> str | None:
        """None when Postgres answers, else one sentence."""
        try:
            async with asyncio.timeout(5), self.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
        except (DependencyUnavailable, TimeoutError) as error:
            return f"Postgres does not answer: {error}"
        return None

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


Connector = Callable[[], Database]
