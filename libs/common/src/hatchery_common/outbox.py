"""The outbox relay: publishes committed rows in order as atomic batches, perhaps twice, never out of order.

It runs in the owner only. A second relay of a frozen process can do no harm: ids dedupe in the stream and in the inbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from structlog.typing import FilteringBoundLogger

from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow, PartialPublish
from hatchery_common.database import Database, outbox
from hatchery_common.errors import DependencyUnavailable
from hatchery_common.failpoints import reach
from hatchery_common.holes import Holes
from hatchery_common.owner import Ownership

BATCH = 500
KEEP_DAYS = 7
_IDLE_S = 5.0  # a look in case that a wake was lost; commits here and NOTIFY are what wakes the relay
_RETRY_S = 1.0
_HOUSEKEEPING_S = 60.0


class Publisher(Protocol):
    """What the relay needs of the bus."""

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]: ...

    async def stream_state(self, stream: str) -> StreamState: ...

    def on_reconnect(self, callback: Callable[[], None]) -> None: ...

    def forget_reconnect(self, callback: Callable[[], None]) -> None: ...


@dataclass(frozen=True)
class _Published:
    """Rows that a stream has stored, to be marked; `failure` is why a batch ended early."""

    row_ids: list[int]
    sequences: list[int]
    failure: BusUnavailable | None = None


class Relay:
    """Moves one service's outbox to the bus."""

    def __init__(self, database: Database, publisher: Publisher, log: FilteringBoundLogger) -> None:
        self._database = database
        self._publisher = publisher
        self._log = log
        self._turn = asyncio.Lock()
        self._holes = Holes(database, publisher, log)
        self._is_certain = False  # whether the streams are known to be those that were published to

    async def run(self, ownership: Ownership) -> None:
        """Publish for ever; woken by commits here, by NOTIFY from other replicas, and every few seconds."""
        self._is_certain = False  # what became of the streams between two terms was not heard
        self._publisher.on_reconnect(self._doubt)
        try:
            while True:
                pause = _IDLE_S
                try:
                    await self.publish_pending()
                except DependencyUnavailable as error:
                    self._log.warning("outbox.waiting", reason=error.message)
                    pause = _RETRY_S
                await self._database.outbox_wake.wait(pause)
        finally:
            self._publisher.forget_reconnect(self._doubt)

    def _doubt(self) -> None:
        """The server was away, and may be another one, or the same with an older store."""
        self._is_certain = False
        self._database.outbox_wake.set()

    async def publish_pending(self) -> int:
        """Publish all that is pending; returns how many rows. A batch is marked while the next one is on its way.

        Raises DependencyUnavailable with what was published already marked, unless marking is what failed: then it is
        published again, under the same ids.
        """
        async with self._turn:
            if not self._is_certain:
                self._is_certain = True  # before the look: a reconnect during it calls for another one
                try:
                    await self._holes.requeue()
                except BaseException:
                    self._is_certain = False
                    raise
            return await self._publish_pending()

    async def _publish_pending(self) -> int:
        moved = 0
        done = _Published([], [])
        while True:
            # Both come to their end before anything is raised: nothing may still be publishing when the next call begins.
            marked, following = await asyncio.gather(
                self._mark(done), self._publish_batch(done.row_ids), return_exceptions=True
            )
            if isinstance(following, BaseException):
                raise following
            if isinstance(marked, BaseException):
                raise marked
            done, moved = following, moved + len(following.row_ids)
            if len(done.row_ids) < BATCH:
                break
        await self._mark(done)
        if done.failure is not None:
            raise done.failure
        return moved

    async def _publish_batch(self, held: Sequence[int]) -> _Published:
        """Publish up to BATCH rows, without those that are just being marked."""
        rows = await self._pending(held)
        if not rows:
            return _Published([], [])
        reach(f"{self._database.schema}.before_publish")
        failure: BusUnavailable | None = None
        try:
            sequences = await self._publisher.publish_rows([outgoing for _, outgoing in rows])
        except PartialPublish as partial:
            sequences, failure = list(partial.published), partial
        reach(f"{self._database.schema}.after_publish")
        return _Published([row_id for row_id, _ in rows[: len(sequences)]], sequences, failure)

    async def _pending(self, held: Sequence[int]) -> list[tuple[int, OutgoingRow]]:
        query = (
            sa.select(outbox.c.id, outbox.c.event_id, outbox.c.subject, outbox.c.headers, outbox.c.payload)
            .where(outbox.c.published_at.is_(None))
            .order_by(outbox.c.id)
            .limit(BATCH)
        )
        if held:
            query = query.where(outbox.c.id != sa.all_(sa.cast(list(held), ARRAY(sa.BigInteger))))
        async with self._database.connect() as connection:
            found = (await connection.execute(query)).all()
        return [(row.id, OutgoingRow(row.event_id, row.subject, row.headers, bytes(row.payload))) for row in found]

    async def _mark(self, published: _Published) -> None:
        if not published.row_ids:
            return
        marked = sa.text(
            "UPDATE outbox SET published_at = now(), stream_sequence = done.sequence "
            "FROM unnest(CAST(:ids AS bigint[]), CAST(:sequences AS bigint[])) AS done(id, sequence) WHERE outbox.id = done.id"
        )
        async with self._database.unit_of_work() as work:
            await work.connection.execute(marked, {"ids": published.row_ids, "sequences": published.sequences})

    async def housekeeping(self, ownership: Ownership) -> None:
        """Each minute: re-publish what the streams have lost, and forget rows published more than KEEP_DAYS ago."""
        while True:
            try:
                await self.republish_holes()
                await self._forget()
            except DependencyUnavailable as error:
                self._log.warning("outbox.housekeeping.waiting", reason=error.message)
            await asyncio.sleep(_HOUSEKEEPING_S)

    async def republish_holes(self) -> int:
        """Queue again what the streams have lost; how many rows."""
        async with self._turn:  # what is published meanwhile could overtake what is about to be queued again
            holes = await self._holes.requeue()
        if holes:
            self._database.outbox_wake.set()
        return holes

    async def _forget(self) -> None:
        old = outbox.delete().where(outbox.c.published_at < sa.func.now() - sa.text(f"interval '{KEEP_DAYS} days'"))
        async with self._database.unit_of_work() as work:
            await work.connection.execute(old)
