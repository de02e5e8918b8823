"""What a stream has lost is queued again from the outbox: a stream made anew lacks everything, one rolled back lacks its end."""

from __future__ import annotations

from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from structlog.typing import FilteringBoundLogger

from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.registry import CMD, EVT, ROUTES, stream_of
from hatchery_common.database import Database, known_streams, outbox

_PATTERNS = {CMD: "cmd.%", EVT: "evt.%", ROUTES: "$KV.%"}


class Streams(Protocol):
    """Tells how a stream is; raises BusUnavailable when it is missing or nobody answers."""

    async def stream_state(self, stream: str) -> StreamState: ...


class Holes:
    """Finds and queues again the rows of one service that its streams do not hold any more.

    The end of a stream alone does not tell: once others, or we, have published to a stream made anew, it reaches beyond
    what was lost. So its creation is kept, and whoever publishes asks here first after each reconnect and election.
    """

    def __init__(self, database: Database, streams: Streams, log: FilteringBoundLogger) -> None:
        self._database = database
        self._declared = {stream_of(message.subject_filter()) for message in database.produces}
        self._streams = streams
        self._log = log

    async def requeue(self) -> int:
        """Queue again what is lost; how many rows. Nothing may be published meanwhile. Safe to repeat.

        Of a route only its newest row: an older one would be published after a newer one that the new stream already has.
        """
        return sum([await self._of_stream(stream, pattern) for stream, pattern in _PATTERNS.items()])

    async def _of_stream(self, stream: str, pattern: str) -> int:
        async with self._database.connect() as connection:
            highest = await connection.scalar(
                sa.select(sa.func.max(outbox.c.stream_sequence)).where(outbox.c.subject.like(pattern))
            )
            created = await connection.scalar(
                sa.select(known_streams.c.created).where(known_streams.c.stream == stream)
            )
        if not highest and stream not in self._declared:
            return 0
        state = await self._streams.stream_state(stream)
        made_anew = created is not None and created != state.created
        if not made_anew and created is not None and state.last_sequence >= (highest or 0):
            return 0
        lost = await self._requeue(stream, pattern, state, after=0 if made_anew else state.last_sequence)
        if lost:
            self._log.error("outbox.holes", stream=stream, rows=lost, made_anew=made_anew)
        return lost

    async def _requeue(self, stream: str, pattern: str, state: StreamState, *, after: int) -> int:
        lost = (
            outbox.update()
            .where(outbox.c.subject.like(pattern), outbox.c.stream_sequence > after)
            .values(published_at=None, stream_sequence=None)
        )
        if stream == ROUTES:
            later = outbox.alias()
            newer = sa.exists().where(later.c.subject == outbox.c.subject, later.c.id > outbox.c.id)
            lost = lost.where(~newer)
        known = insert(known_streams).values(stream=stream, created=state.created)
        known = known.on_conflict_do_update(index_elements=["stream"], set_={"created": state.created})
        async with self._database.unit_of_work() as work:
            result: Any = await work.connection.execute(lost)
            await work.connection.execute(known)
        return int(result.rowcount)
