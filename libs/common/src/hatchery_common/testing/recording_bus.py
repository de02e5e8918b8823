"""A bus without a server, for tests of handlers: records what is published and called, and delivers to subscriptions.

It passes the same behavioural suite as the real one (libs/common/tests/bus/test_bus_behaviour.py); it keeps nothing, retries
nothing and knows no rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from hatchery_common.bus.consumption import compare
from hatchery_common.bus.delivery import BatchSubscription, Delivery, Subscription
from hatchery_common.bus.envelope import Placed, decode, encode
from hatchery_common.bus.errors import BusUnavailable, RemoteError, SequenceConflict, UndeclaredMessage
from hatchery_common.bus.facade import Bus, Running
from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow
from hatchery_common.bus.registry import ROUTES, Registry, stream_of
from hatchery_common.bus.routes import Routes
from hatchery_common.bus.threadlog import LogEntry, ThreadLog
from hatchery_common.clock import Clock, SystemClock
from hatchery_common.contracts.base import Message, Rpc
from hatchery_common.contracts.routes import Route
from hatchery_common.contracts.threads import ThreadEntry
from hatchery_common.errors import HatcheryError
from hatchery_common.service import RpcHandler, Service


def delivery_of(message: Message, *, id: str = "msg-1", sequence: int = 1, cause: Delivery[Any] | None = None) -> Any:  # noqa: A002
    """The delivery of a message as a handler would get it; for calling handlers directly."""
    subject, headers, body = encode(message, source="hatchery/test", id=id, cause=cause)
    raw = _Wire(subject, headers, body)
    return decode(raw, Registry([type(message)]), Placed(stream_of(subject), sequence, 1))


@dataclass
class _Wire:
    subject: str
    headers: dict[str, str] | None
    data: bytes
    reply: str = ""


@dataclass(frozen=True)
class Dead:
    """A message whose handler refused it."""

    delivery: Delivery[Any]
    error: HatcheryError


class RecordingThreadLog(ThreadLog):
    """Thread logs in memory."""

    def __init__(self, *, writes: bool = True, heartbeat_s: float = 10.0) -> None:
        self._writes = writes
        self._heartbeat_s = heartbeat_s
        self._sequence = 0
        self._logs: dict[tuple[str, str], list[LogEntry]] = {}
        self._grown = asyncio.Condition()

    async def append(self, tenant: str, thread_id: str, entries: Sequence[ThreadEntry], *, expected_last: int) -> int:
        if not self._writes:
            raise UndeclaredMessage("this service does not declare that it writes threads")
        log = self._logs.setdefault((tenant, thread_id), [])
        last = log[-1].sequence if log else 0
        if log and log[-1].entry.id == entries[-1].id:
            return last
        if last != expected_last:
            raise SequenceConflict(f"{thread_id} ends at {last}, not at {expected_last}", last=last)
        for entry in entries:
            self._sequence += 1
            log.append(LogEntry(self._sequence, entry))
        async with self._grown:
            self._grown.notify_all()
        return self._sequence

    async def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry]:
        for entry in list(self._logs.get((tenant, thread_id), ())):
            if entry.sequence > after:
                yield entry

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        log = self._logs.get((tenant, thread_id))
        return (log[0].sequence, log[-1].sequence) if log else (0, 0)

    async def follow(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry | None]:
        while True:
            async for entry in self.read(tenant, thread_id, after):
                after = entry.sequence
                yield entry
            async with self._grown:
                if (await self.bounds(tenant, thread_id))[1] > after:
                    continue
                try:
                    await asyncio.wait_for(self._grown.wait(), self._heartbeat_s)
                except TimeoutError:
                    yield None


class RecordingRoutes(Routes):
    """Routes in memory; `put` is what the provisioner's outbox would do."""

    def __init__(self) -> None:
        self.table: dict[str, Route] = {}
        self._followers: list[Callable[[Route], None]] = []

    def put(self, route: Route) -> None:
        """Store a route and tell the followers."""
        self.table[route.instance_id] = route
        for follower in self._followers:
            follower(route)

    async def snapshot(self) -> dict[str, Route]:
        return dict(self.table)

    async def follow(self, callback: Callable[[Route], None]) -> None:
        self._followers.append(callback)


class _Stop:
    def __init__(self, table: dict[str, Any], names: Sequence[str]) -> None:
        self._table = table
        self._names = names

    async def stop(self, deadline_s: float = 10.0) -> None:
        for name in self._names:
            self._table.pop(name, None)

    def problem(self) -> str | None:
        return None


class RecordingBus(Bus):
    """The facade over lists: `published`, `rows`, `called`, `dead`; `answer` prepares what an rpc gives."""

    def __init__(self, service: Service, *, clock: Clock | None = None) -> None:
        self.service = service
        self.published: list[Message] = []
        self.deliveries: list[Delivery[Any]] = []
        self.rows: list[OutgoingRow] = []
        self.called: list[tuple[str, Any]] = []
        self.dead: list[Dead] = []
        self.problem: str | None = None
        self.reconnects: list[Callable[[], None]] = []
        self._clock = clock or SystemClock()
        self._produces = Registry(service.produces)
        self._threads = RecordingThreadLog(writes=service.writes_threads)
        self._routes = RecordingRoutes()
        self._answers: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        self._handlers: dict[str, Callable[[Delivery[Any]], Awaitable[None]]] = {}
        self._sequences: dict[str, int] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: dict[str, asyncio.Lock] = {}

    @classmethod
    @asynccontextmanager
    async def open_recording(cls, service: Service) -> AsyncGenerator[RecordingBus]:
        """As Bus.open; at the end all deliveries have been handled."""
        bus = cls(service)
        yield bus
        await bus.settled()

    async def close(self) -> None:
        await self.settled()

    async def settled(self) -> None:
        """Wait until every delivery so far, and those that they caused, has been handled."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def publish(self, message: Message, *, cause: Delivery[Any] | None = None, id: str | None = None) -> int:  # noqa: A002
        subject, headers, body = self.encode(message, cause=cause, id=id)
        return self._store(subject, headers, body)

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        self.rows += rows
        return [self._store(row.subject, {**row.headers, "Nats-Msg-Id": row.id}, row.payload) for row in rows]

    async def publish_batch(self, rows: Sequence[OutgoingRow]) -> list[int]:
        return await self.publish_rows(rows)

    def _store(self, subject: str, headers: dict[str, str], body: bytes) -> int:
        stream, identifier = stream_of(subject), headers["Nats-Msg-Id"]
        known = self._ids.get((stream, identifier))
        if known is not None:
            return known
        sequence = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        self._ids[stream, identifier] = sequence
        if stream == ROUTES:
            self._routes.put(Route.model_validate_json(body))
            return sequence
        delivery = decode(_Wire(subject, headers, body), Registry(self.service.produces), Placed(stream, sequence, 1))
        self.published.append(delivery.message)
        self.deliveries.append(delivery)
        self._deliver(delivery)
        return sequence

    def _deliver(self, delivery: Delivery[Any]) -> None:
        handler = self._handlers.get(delivery.type)
        if handler is not None:
            task = asyncio.get_running_loop().create_task(self._handle(handler, delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, handler: Callable[[Delivery[Any]], Awaitable[None]], delivery: Delivery[Any]) -> None:
        async with self._lanes.setdefault(delivery.message.aggregate_id, asyncio.Lock()):
            try:
                await handler(delivery)
            except HatcheryError as error:
                self.dead.append(Dead(delivery, error))

    def answer(self, rpc: Rpc[Any, Any], answer: Any) -> None:
        """What `call` gives for this rpc: a response, an error to raise, or an async function of the request."""

        async def give(request: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            if callable(answer):
                given: Any = answer(request)
                return await given
            return answer

        self._answers[rpc.subject] = give

    async def call(self, rpc: Rpc[Any, Any], request: Any, *, timeout_ms: int | None = None) -> Any:
        if rpc not in self.service.calls:
            raise UndeclaredMessage(f"{self.service.name} does not declare that it calls {rpc.subject}")
        self.called.append((rpc.subject, request))
        answer = self._answers.get(rpc.subject)
        if answer is None:
            raise BusUnavailable(f"{rpc.service} is not there to answer {rpc.method}")
        try:
            return await answer(request)
        except (RemoteError, BusUnavailable):
            raise
        except HatcheryError as error:
            raise RemoteError(error.code, error.message, hint=error.hint) from error

    async def subscribe(self, subscriptions: Sequence[Subscription], **_hooks: Any) -> Any:
        wanted = [message for message in self.service.consumes if message not in self.service.batched]
        compare(self.service.name, wanted, [subscription.message for subscription in subscriptions])
        own = {subscription.message.message_type(): subscription.handler for subscription in subscriptions}
        self._handlers |= own
        return _Stop(self._handlers, list(own))

    async def subscribe_batches(self, batches: Sequence[BatchSubscription], **_hooks: Any) -> Any:
        wanted = [message for message in self.service.consumes if message in self.service.batched]
        compare(self.service.name, wanted, [message for batch in batches for message in batch.messages])
        for batch in batches:
            for message in batch.messages:
                self._handlers[message.message_type()] = _single(batch)
        return _Stop(self._handlers, [message.message_type() for batch in batches for message in batch.messages])

    async def serve(self, handlers: Sequence[RpcHandler], *, concurrency: int = 64) -> Running:
        for handler in handlers:
            if handler.rpc not in self.service.serves:
                raise UndeclaredMessage(f"{self.service.name} does not declare that it serves {handler.rpc.subject}")
            self._answers[handler.rpc.subject] = handler.handler
        subjects = [handler.rpc.subject for handler in handlers]
        return _Stop(self._answers, subjects)

    def health(self) -> str | None:
        return self.problem

    @property
    def connected(self) -> bool:
        return self.problem is None

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self.reconnects.append(callback)

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        self.reconnects.remove(callback)

    async def missing(self) -> str | None:
        return None

    async def lag(self) -> dict[str, int]:
        return {}

    async def stream_state(self, stream: str) -> StreamState:
        last = self._sequences.get(stream, 0)
        return StreamState(stream, "2026-01-01T00:00:00Z", last, 0, min(1, last), last, 0)

    def redeliver(self, delivery: Delivery[Any]) -> None:
        """Deliver once more what was delivered before, as the server may."""
        self._deliver(delivery._replace(deliveries=delivery.deliveries + 1))


def _single(batch: BatchSubscription) -> Callable[[Delivery[Any]], Awaitable[None]]:
    async def handle(delivery: Delivery[Any]) -> None:
        await batch.handler([delivery])

    return handle
