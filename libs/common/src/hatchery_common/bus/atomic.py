"""Atomic batches (nats-server 2.12): all messages of a batch are stored, with one fsync, or none is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.envelope import MESSAGE_ID
from hatchery_common.bus.errors import BusRefused, BusUnavailable
from hatchery_common.ids import uuid7

BATCH_LIMIT = 100
_INCOMPLETE = 10176  # a message of the batch went missing, as when the leader changed in its middle
_ATTEMPT_S = 3.0


class Row(Protocol):
    """What a batch is made of."""

    @property
    def id(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def payload(self) -> bytes: ...


class BatchRefused(BusRefused):
    """The server refused the batch as a whole and stored nothing of it; `err_code` says why."""

    code = "batch_refused"


async def publish_atomically(connection: Connection, rows: Sequence[Row], *, deadline_s: float = 15.0) -> list[int]:
    """Store rows of one stream together; their sequences. Raises BatchRefused, or BusUnavailable after the deadline."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    pause = 0.05
    incomplete = 0
    while True:
        try:
            return await _attempt(connection, rows)
        except BatchRefused as error:
            incomplete += error.err_code == _INCOMPLETE
            if error.err_code != _INCOMPLETE or incomplete > 1:
                raise  # twice is no accident: the server refuses one of its messages
        except BusUnavailable:
            if loop.time() + pause >= end:
                raise
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 2)


async def _attempt(connection: Connection, rows: Sequence[Row]) -> list[int]:
    batch = uuid7().hex  # a new one for each attempt: a half-sent batch is abandoned by the server
    last = len(rows)
    for number, row in enumerate(rows[:-1], 1):
        await connection.publish(row.subject, row.payload, headers=_headers(row, batch, number))
    final = rows[-1]
    headers = {**_headers(final, batch, last), "Nats-Batch-Commit": "1"}
    answer = await connection.request(final.subject, final.payload, headers=headers, timeout_s=_ATTEMPT_S)
    found = json.loads(answer.data)
    error = found.get("error")
    if error is None:
        end = int(found["seq"])
        return list(range(end - last + 1, end + 1))
    text = f"a batch of {last} for {final.subject}: {error.get('description', 'refused')}"
    number = int(error.get("err_code", 0))
    if error.get("code") == 503:
        raise BusUnavailable(text)
    raise BatchRefused(text, err_code=number)


def _headers(row: Row, batch: str, number: int) -> dict[str, str]:
    return {**row.headers, MESSAGE_ID: row.id, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
