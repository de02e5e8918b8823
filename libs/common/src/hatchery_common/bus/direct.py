"""Direct reads of a stream's messages in their order: no consumer is made, nothing is left on the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.listening import Listening, Raw
from hatchery_common.ids import uuid7

_BATCH = 256


class Stored(NamedTuple):
    """A message as a stream holds it."""

    subject: str
    sequence: int
    headers: dict[str, str]
    data: bytes


class DirectReader:
    """Reads by `$JS.API.DIRECT.GET`; all reads of a connection share one inbox."""

    def __init__(self, connection: Connection, *, attempt_s: float = 3.0) -> None:
        self._connection = connection
        self._attempt_s = attempt_s
        self._inbox = ""
        self._listening: Listening | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[str, asyncio.Queue[Raw]] = {}

    async def read(
        self, stream: str, subject: str, *, after: int = 0, deadline_s: float = 15.0
    ) -> AsyncGenerator[Stored]:
        """All messages of these subjects after that sequence, up to the present end; the deadline is for each answer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while True:
            try:
                messages, more = await self._ask(stream, {"seq": after + 1, "next_by_subj": subject, "batch": _BATCH})
            except BusUnavailable:
                if loop.time() >= end:
                    raise
                await asyncio.sleep(0.1)
                continue
            for message in messages:
                yield message
            if not more or not messages:
                return
            after = messages[-1].sequence
            end = loop.time() + deadline_s

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject."""
        return await self._one(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str) -> Stored | None:
        """The first message of a subject that the stream still holds."""
        return await self._one(stream, {"seq": 1, "next_by_subj": subject})

    async def _one(self, stream: str, body: dict[str, Any]) -> Stored | None:
        answer = await self._connection.request(
            f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode(), timeout_s=self._attempt_s
        )
        return _stored(answer)

    async def _ask(self, stream: str, body: dict[str, Any]) -> tuple[list[Stored], bool]:
        await self._open()
        token = uuid7().hex
        queue: asyncio.Queue[Raw] = asyncio.Queue()
        self._waiting[token] = queue
        found: list[Stored] = []
        try:
            await self._connection.publish(
                f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode(), reply=f"{self._inbox}.{token}"
            )
            while True:
                raw = await asyncio.wait_for(queue.get(), self._attempt_s)
                message = _stored(raw)
                if message is None:
                    return found, _pending(raw) > 0
                found.append(message)
        except TimeoutError as error:
            raise BusUnavailable(f"{stream} was not read within {self._attempt_s:g} s") from error
        finally:
            del self._waiting[token]

    async def _open(self) -> None:
        async with self._opening:
            if self._listening is None:
                self._inbox = self._connection.new_inbox()
                self._listening = await self._connection.subscribe(f"{self._inbox}.*", self._receive)

    async def _receive(self, raw: Raw) -> None:
        queue = self._waiting.get(raw.subject.rpartition(".")[2])
        if queue is not None:
            queue.put_nowait(raw)


def _stored(raw: Raw) -> Stored | None:
    """The message of an answer; None for 404 (nothing there) and 204 (end of batch)."""
    headers = raw.headers or {}
    status = headers.get("Status")
    if status in ("404", "204"):
        return None
    if status is not None:
        raise BusUnavailable(f"a direct read was answered by {status} {headers.get('Description', '')}")
    return Stored(headers["Nats-Subject"], int(headers["Nats-Sequence"]), headers, raw.data)


def _pending(raw: Raw) -> int:
    return int((raw.headers or {}).get("Nats-Num-Pending", "0"))
