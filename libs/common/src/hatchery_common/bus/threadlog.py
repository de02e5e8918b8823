"""Thread logs: appended under the expected last sequence, read, and followed as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from hatchery_common.bus.atomic import BATCH_LIMIT, BatchRefused, publish_atomically
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.direct import DirectReader
from hatchery_common.bus.errors import SequenceConflict, UndeclaredMessage
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.publisher import OutgoingRow
from hatchery_common.bus.registry import LIVE_PREFIX, THREADS
from hatchery_common.contracts.threads import ThreadEntry, thread_subject
from hatchery_common.errors import InvalidInput

_LIVE = 256  # entries that wait for a reader
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_CONFLICT = frozenset({10071, 10164, 10201})  # wrong last sequence (two forms), or an id that is stored already


class LogEntry(NamedTuple):
    """An entry with its place in the stream; sequences of one thread increase, with gaps."""

    sequence: int
    entry: ThreadEntry


class ThreadLog:
    """The logs of all threads; which rights a service has on them its declaration says."""

    def __init__(
        self, connection: Connection, reader: DirectReader, *, writes: bool, heartbeat_s: float = 10.0
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._writes = writes
        self._heartbeat_s = heartbeat_s

    async def append(self, tenant: str, thread_id: str, entries: Sequence[ThreadEntry], *, expected_last: int) -> int:
        """Append all or none; the log's new last sequence. Raises SequenceConflict when the log has moved on.

        Repeating an append that was stored returns its sequence: after a lost answer it is safe to call again.
        """
        if not self._writes:
            raise UndeclaredMessage("this service does not declare that it writes threads")
        if not 1 <= len(entries) <= BATCH_LIMIT:
            raise InvalidInput(f"an append takes 1 to {BATCH_LIMIT} entries, not {len(entries)}")
        subject = thread_subject(tenant, thread_id)
        rows = [OutgoingRow(entry.id, subject, {}, entry.model_dump_json().encode()) for entry in entries]
        rows[0].headers[_EXPECTED] = str(expected_last)
        try:
            return (await publish_atomically(self._connection, rows))[-1]
        except BatchRefused as error:
            if error.err_code not in _CONFLICT:
                raise
        return await self._settle(subject, entries[-1].id, expected_last)

    async def _settle(self, subject: str, last_id: str, expected_last: int) -> int:
        last = await self._reader.last(THREADS, subject)
        if last is not None and last.headers.get("Nats-Msg-Id") == last_id:
            return last.sequence  # it was ours: an earlier attempt had been stored
        found = 0 if last is None else last.sequence
        raise SequenceConflict(f"{subject} ends at {found}, not at {expected_last}", last=found)

    async def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry]:
        """The entries after that sequence, up to the present end."""
        async for stored in self._reader.read(THREADS, thread_subject(tenant, thread_id), after=after):
            yield LogEntry(stored.sequence, ThreadEntry.model_validate_json(stored.data))

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        """First and last sequence of the thread's log, (0, 0) when it is empty."""
        subject = thread_subject(tenant, thread_id)
        first = await self._reader.first(THREADS, subject)
        if first is None:
            return 0, 0
        last = await self._reader.last(THREADS, subject)
        return first.sequence, first.sequence if last is None else last.sequence

    async def follow(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry | None]:
        """The entries after that sequence and all that follow, for ever; None as a heartbeat.

        The server repeats each stored entry on `live.<tenant>.<thread>` together with the sequence before it; whenever that
        is not the last one seen here (or after a reconnect, or a quiet while), the log itself is read.
        """
        live: asyncio.Queue[Raw | None] = asyncio.Queue(_LIVE)

        # What a slow reader's queue cannot take is left out: the gap shows, and is read from the log.
        async def receive(raw: Raw) -> None:
            if not live.full():
                live.put_nowait(raw)

        def look_again() -> None:
            if not live.full():
                live.put_nowait(None)

        subject = LIVE_PREFIX + thread_subject(tenant, thread_id).partition(".")[2]
        listening = await self._connection.subscribe(subject, receive)
        self._connection.on_reconnect(look_again)
        try:
            async for entry in self._merged(tenant, thread_id, after, live):
                yield entry
        finally:
            self._connection.forget_reconnect(look_again)
            await self._connection.unsubscribe(listening)

    async def _merged(
        self, tenant: str, thread_id: str, after: int, live: asyncio.Queue[Raw | None]
    ) -> AsyncGenerator[LogEntry | None]:
        seen = after
        raw: Any = None
        while True:
            if raw is None or int(raw.headers["Nats-Last-Sequence"]) > seen:
                async for entry in self.read(tenant, thread_id, seen):
                    seen = entry.sequence
                    yield entry
            elif (sequence := int(raw.headers["Nats-Sequence"])) > seen:
                seen = sequence
                yield LogEntry(sequence, ThreadEntry.model_validate_json(raw.data))
            try:
                raw = await asyncio.wait_for(live.get(), self._heartbeat_s)
            except TimeoutError:
                raw = None
                yield None
