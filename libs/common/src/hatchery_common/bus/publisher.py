"""Publishing: one message, or the outbox's rows in their order, as atomic batches where one stream takes them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hatchery_common.bus.atomic import BATCH_LIMIT, BatchRefused, publish_atomically
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.envelope import MESSAGE_ID
from hatchery_common.bus.errors import BusRefused, BusUnavailable
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.registry import ROUTES, stream_of
from hatchery_common.errors import InvalidInput


@dataclass(frozen=True)
class OutgoingRow:
    """One outbox row; `id` becomes its Nats-Msg-Id, so that sending it again within ten minutes stores nothing twice."""

    id: str
    subject: str
    headers: dict[str, str]
    payload: bytes


class PartialPublish(BusUnavailable):
    """Some rows are stored and the next one is not: `published` holds the sequences of those that are, in order."""

    code = "partial_publish"

    def __init__(self, message: str, *, published: Sequence[int], failed: OutgoingRow) -> None:
        super().__init__(message)
        self.published = list(published)
        self.failed = failed


class Publisher:
    """Publishes with acknowledgement; never out of order, perhaps twice (the message id tells)."""

    def __init__(self, connection: Connection, *, deadline_s: float = 15.0) -> None:
        self._connection = connection
        self._jetstream = JetStream(connection)
        self._deadline_s = deadline_s

    async def publish(self, subject: str, headers: dict[str, str], payload: bytes) -> int:
        """Publish one message; its stream sequence."""
        answer = await self._jetstream.publish(subject, payload, headers, deadline_s=self._deadline_s)
        return int(answer["seq"])

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        """Publish rows in order, their sequences in the same order; raises PartialPublish at the first that fails."""
        sequences: list[int] = []
        try:
            for run in _runs(rows):
                for chunk in _chunks(run):
                    sequences += await self._batch(chunk, sequences)
        except PartialPublish:
            raise
        except (BusUnavailable, BusRefused, InvalidInput) as error:
            raise PartialPublish(str(error), published=sequences, failed=rows[len(sequences)]) from error
        return sequences

    async def publish_batch(self, rows: Sequence[OutgoingRow]) -> list[int]:
        """At most 100 rows of one stream as one atomic batch: all are stored or none."""
        return await self._batch(rows, [])

    async def _batch(self, rows: Sequence[OutgoingRow], before: Sequence[int]) -> list[int]:
        if len(rows) > 1:
            try:
                return await publish_atomically(self._connection, rows, deadline_s=self._deadline_s)
            except BatchRefused:
                pass  # one of them is stored already, or one is bad: one at a time tells which
        done: list[int] = []
        for row in rows:
            try:
                done.append(await self.publish(row.subject, with_id(row), row.payload))
            except (BusUnavailable, BusRefused, InvalidInput) as error:
                raise PartialPublish(str(error), published=[*before, *done], failed=row) from error
        return done


def with_id(row: OutgoingRow) -> dict[str, str]:
    """The row's headers with its message id."""
    return {**row.headers, MESSAGE_ID: row.id}


def _runs(rows: Sequence[OutgoingRow]) -> Iterator[list[OutgoingRow]]:
    """Neighbours that one stream stores; routes go alone, since a later put of the same key must replace an earlier one."""
    run: list[OutgoingRow] = []
    for row in rows:
        stream = stream_of(row.subject)
        if run and (stream == ROUTES or stream_of(run[0].subject) != stream):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _chunks(run: list[OutgoingRow]) -> Iterator[list[OutgoingRow]]:
    for start in range(0, len(run), BATCH_LIMIT):
        yield run[start : start + BATCH_LIMIT]
