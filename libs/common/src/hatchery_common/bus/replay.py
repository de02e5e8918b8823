"""The operators' side: look at streams, read and count by scratch consumers, dead letters and sending them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hatchery_common.bus import deadletter
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.direct import DirectReader
from hatchery_common.bus.envelope import MESSAGE_ID
from hatchery_common.bus.errors import ReplaySkipsUnread
from hatchery_common.bus.jetstream import JetStream, StreamState, state_of
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.registry import DEAD_PREFIX, DLQ
from hatchery_common.bus.scratch import Record, Scratch, Start
from hatchery_common.bus.topology import Report, migrate
from hatchery_common.errors import NotFound
from hatchery_common.service import Service


@dataclass(frozen=True)
class DurableState:
    """How far a durable is behind."""

    stream: str
    name: str
    filters: tuple[str, ...]
    pending: int  # not delivered yet
    unacknowledged: int
    redelivered: int
    acknowledged_to: int


class Operator:
    """Everything an operator may do; needs the key of bus-admin."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.jetstream = JetStream(connection)
        self._reader = DirectReader(connection)
        self._publisher = Publisher(connection)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, seed: str | None = None, timeout_s: float = 5.0) -> AsyncGenerator[Operator]:
        """Connect as bus-admin; raises BusUnavailable or Refused."""
        connection = Connection(url, ADMIN, seed)
        await connection.open(timeout_s)
        try:
            yield cls(connection)
        finally:
            await connection.close()

    async def migrate(self, services: Sequence[Service], *, replicas: int = 1) -> Report:
        """Create or update streams and durables."""
        return await migrate(self.jetstream, services, replicas=replicas)

    async def streams(self) -> list[StreamState]:
        """All streams by name."""
        answer = await self.jetstream.call("STREAM.LIST", {"offset": 0})
        return sorted((state_of(info) for info in answer.get("streams") or []), key=lambda state: state.name)

    async def durables(self, stream: str) -> list[DurableState]:
        """The durables of a stream, without scratch consumers."""
        answer = await self.jetstream.call(f"CONSUMER.LIST.{stream}", {"offset": 0})
        found = [_durable(info) for info in answer.get("consumers") or [] if "durable_name" in info["config"]]
        return sorted(found, key=lambda durable: durable.name)

    async def count(self, stream: str, *, subjects: Sequence[str] = (), start: Start | None = None) -> int:
        """How many messages `read` would give."""
        async with Scratch.open(self._connection, stream, subjects, start or Start()) as scratch:
            return scratch.pending

    async def read(
        self, stream: str, *, subjects: Sequence[str] = (), start: Start | None = None, limit: int | None = None
    ) -> AsyncGenerator[Record]:
        """Messages in order up to the present end; `start` says from which sequence, time, or how many from the end."""
        async with Scratch.open(self._connection, stream, subjects, start or Start()) as scratch:
            number = 0
            async for record in scratch.until_end():
                yield record
                number += 1
                if number == limit:
                    return

    async def tail(
        self, stream: str, *, subjects: Sequence[str] = (), start: Start | None = None
    ) -> AsyncGenerator[Record]:
        """Messages as they come, for ever; by default from now on."""
        async with Scratch.open(self._connection, stream, subjects, start or Start(new=True)) as scratch:
            async for record in scratch.for_ever():
                yield record

    async def show(self, stream: str, sequence: int) -> Record:
        """One message; raises NotFound."""
        async for record in self.read(stream, start=Start(sequence=sequence), limit=1):
            if record.sequence == sequence:
                return record
        raise NotFound(f"{stream} has no message {sequence}")

    async def redrive(self, sequence: int) -> int:
        """Send a dead letter to its original subject again; its new sequence.

        The ce-id stays, so inboxes that did the effect skip it; the message id is new, and the same for this dead letter,
        so that sending it twice within ten minutes stores it once.
        """
        record = await self.show(DLQ, sequence)
        times = int(record.headers.get(deadletter.REDRIVE, "0")) + 1
        kept = {
            name: value for name, value in record.headers.items() if not name.startswith(("Nats-", "Hatchery-Dead-"))
        }
        identifier = f"redrive:{record.headers.get('ce-id', f'dlq-{sequence}')}:{times}"
        headers = {**kept, MESSAGE_ID: identifier, deadletter.REDRIVE: str(times)}
        subject = record.subject.removeprefix(DEAD_PREFIX)
        return await self._publisher.publish(subject, headers, record.data)

    async def durable(self, stream: str, name: str) -> DurableState:
        """The durable of that name; raises NotFound."""
        for found in await self.durables(stream):
            if found.name == name:
                return found
        raise NotFound(f"{stream} has no durable {name}", hint="`hatchery stream ls` shows those there are")

    async def require_all_done_before(self, stream: str, durable: str, sequence: int) -> None:
        """Raises ReplaySkipsUnread when the durable has not done all of its messages before that sequence."""
        state = await self.durable(stream, durable)
        undone: list[int] = []
        start = Start(sequence=state.acknowledged_to + 1)
        if sequence > state.acknowledged_to + 1:
            async with aclosing(self.read(stream, subjects=state.filters, start=start)) as records:
                async for record in records:
                    if record.sequence >= sequence:
                        break
                    undone.append(record.sequence)
        if undone:
            raise ReplaySkipsUnread(
                f"{durable} has done all of {stream} only up to sequence {state.acknowledged_to}: from {sequence} on it would "
                f"skip {len(undone)} messages, {undone[0]} to {undone[-1]}, of which some or all are not done",
                hint=f"start at {undone[0]} or before: --from-seq {undone[0]}",
            )

    async def reset(self, stream: str, durable: str, sequence: int) -> None:
        """Let a durable read again from that sequence; inboxes keep effects from happening twice.

        It only goes back: raises ReplaySkipsUnread instead of leaving out what the durable has not done yet.
        """
        await self.require_all_done_before(stream, durable, sequence)
        await self.jetstream.call(f"CONSUMER.RESET.{stream}.{durable}", {"seq": sequence})

    async def purge_thread(self, subject: str) -> int:
        """Remove a thread's whole log; how many entries it had."""
        answer = await self.jetstream.call("STREAM.PURGE.THREADS", {"filter": subject})
        return int(answer.get("purged", 0))


def _durable(info: Mapping[str, Any]) -> DurableState:
    config = info["config"]
    filters = config.get("filter_subjects") or [config.get("filter_subject", ">")]
    return DurableState(
        stream=info["stream_name"],
        name=info["name"],
        filters=tuple(filters),
        pending=int(info["num_pending"]),
        unacknowledged=int(info["num_ack_pending"]),
        redelivered=int(info["num_redelivered"]),
        acknowledged_to=int(info["ack_floor"]["stream_seq"]),
    )


def since(moment: datetime) -> Start:
    """From that moment on."""
    return Start(time=moment.astimezone(UTC))
