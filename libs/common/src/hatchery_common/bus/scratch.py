"""Scratch consumers: in memory, without acknowledgements, gone a while after their reader; for operators and rebuilds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.pull import StandingPull
from hatchery_common.ids import uuid7

_SECOND = 1_000_000_000
_SILENCE_S = 15.0


@dataclass(frozen=True)
class Start:
    """Where to begin: at a sequence, at a time, so many from the end, or with what comes new; else at the beginning."""

    sequence: int | None = None
    time: datetime | None = None
    last: int | None = None
    new: bool = False


@dataclass(frozen=True)
class Record:
    """A stored message as operators see it."""

    stream: str
    sequence: int
    time: datetime
    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def id(self) -> str | None:
        """The ce-id."""
        return self.headers.get("ce-id")

    @property
    def type(self) -> str | None:
        """The ce-type."""
        return self.headers.get("ce-type")


class Scratch:
    """One scratch consumer and its standing pull."""

    def __init__(self, connection: Connection, stream: str, name: str, pending: int) -> None:
        self.pending = pending
        self._stream = stream
        self._queue: asyncio.Queue[Raw] = asyncio.Queue()
        self._pull = StandingPull(connection, stream, name, self._receive, outstanding=512)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, connection: Connection, stream: str, subjects: Sequence[str], start: Start
    ) -> AsyncGenerator[Scratch]:
        """Make the consumer; it is deleted at the end, and by the server when the reader is gone for 30 s."""
        jetstream = JetStream(connection)
        name, pending = await _create(jetstream, stream, subjects, start)
        scratch = cls(connection, stream, name, pending)
        await scratch._pull.start()
        try:
            yield scratch
        finally:
            await scratch._pull.stop()
            await _delete(jetstream, stream, name)

    async def until_end(self) -> AsyncGenerator[Record]:
        """The messages that were there when the consumer was made."""
        left = self.pending
        while left > 0:
            try:
                raw = await asyncio.wait_for(self._queue.get(), _SILENCE_S)
            except TimeoutError as error:
                problem = self._pull.problem or f"nothing for {_SILENCE_S:g} s"
                raise BusUnavailable(f"reading {self._stream} stopped: {problem}") from error
            yield self._taken(raw)
            left = int(raw.reply.split(".")[-1])

    async def for_ever(self) -> AsyncGenerator[Record]:
        """All messages, also those to come."""
        while True:
            yield self._taken(await self._queue.get())

    def _receive(self, raw: Raw) -> bool:
        self._queue.put_nowait(raw)
        return True

    def _taken(self, raw: Raw) -> Record:
        self._pull.release()
        tokens = raw.reply.split(".")
        moment = datetime.fromtimestamp(int(tokens[-2]) / _SECOND, UTC)
        return Record(self._stream, int(tokens[-4]), moment, raw.subject, dict(raw.headers or {}), raw.data)


async def _create(jetstream: JetStream, stream: str, subjects: Sequence[str], start: Start) -> tuple[str, int]:
    if start.last is not None:
        sequence = await _sequence_of_last(jetstream, stream, subjects, start.last)
        start = Start(sequence=sequence)
    name = f"scratch-{uuid7().hex[:16]}"
    config: dict[str, Any] = {
        "name": name,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * _SECOND,
        "max_deliver": 1,
        "filter_subjects": list(subjects),
        **_policy(start),
    }
    body = {"stream_name": stream, "config": config, "action": "create"}
    info = await jetstream.call(f"CONSUMER.CREATE.{stream}.{name}", body)
    return name, int(info["num_pending"])


def _policy(start: Start) -> dict[str, Any]:
    if start.sequence is not None:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start.sequence)}
    if start.time is not None:
        return {"deliver_policy": "by_start_time", "opt_start_time": start.time.isoformat()}
    return {"deliver_policy": "new" if start.new else "all"}


async def _sequence_of_last(jetstream: JetStream, stream: str, subjects: Sequence[str], wanted: int) -> int:
    """The sequence from which exactly `wanted` matching messages follow, found by asking the server to count."""
    state = await jetstream.stream_state(stream)
    if state is None or wanted < 1:
        return 1 if state is None else state.last_sequence + 1
    low, high = max(1, state.first_sequence), state.last_sequence + 1
    while low < high:
        middle = (low + high + 1) // 2
        name, pending = await _create(jetstream, stream, subjects, Start(sequence=middle))
        await _delete(jetstream, stream, name)
        if pending >= wanted:
            low = middle
        else:
            high = middle - 1
    return low


async def _delete(jetstream: JetStream, stream: str, name: str) -> None:
    try:
        await jetstream.find(f"CONSUMER.DELETE.{stream}.{name}")
    except BusUnavailable:
        return  # the server removes it by itself
