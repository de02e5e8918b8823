"""The bus as a service sees it: one connection with the rights of its declaration."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel

from hatchery_common.bus import rpc as rpcs
from hatchery_common.bus.attempts import ConsumerSettings
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.consumption import Consumption, batched, lanes
from hatchery_common.bus.deadletter import OnDead
from hatchery_common.bus.delivery import BatchSubscription, Delivery, Subscription
from hatchery_common.bus.direct import DirectReader
from hatchery_common.bus.envelope import Encoded, encode
from hatchery_common.bus.errors import BusUnavailable, UndeclaredMessage
from hatchery_common.bus.jetstream import JetStream, StreamState
from hatchery_common.bus.publisher import OutgoingRow, Publisher
from hatchery_common.bus.quarantine import Trial
from hatchery_common.bus.registry import Registry
from hatchery_common.bus.routes import Routes
from hatchery_common.bus.threadlog import ThreadLog
from hatchery_common.bus.topology import durables_of, missing
from hatchery_common.clock import Clock, SystemClock
from hatchery_common.contracts.base import Message, Rpc

if TYPE_CHECKING:
    from hatchery_common.service import RpcHandler, Service

Q = TypeVar("Q", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


class Running(Protocol):
    """Something that answers until it is stopped."""

    async def stop(self, deadline_s: float) -> None: ...


class Bus:
    """Publishes what the service declares, consumes what it declares, asks and answers what it declares."""

    def __init__(self, connection: Connection, service: Service, *, settings: ConsumerSettings, clock: Clock) -> None:
        self.service = service
        self._connection = connection
        self._settings = settings
        self._clock = clock
        self._produces = Registry(service.produces)
        self._publisher = Publisher(connection)
        self._jetstream = JetStream(connection)
        self._consumptions: list[Consumption] = []
        reader = DirectReader(connection)
        self._threads = ThreadLog(connection, reader, writes=service.writes_threads)
        self._routes = Routes(connection, reader)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        service: Service,
        *,
        seed: str | None = None,
        timeout_s: float = 10.0,
        settings: ConsumerSettings | None = None,
        clock: Clock | None = None,
    ) -> AsyncGenerator[Bus]:
        """Connect as this service (its nkey seed, its inbox); raises BusUnavailable or Refused."""
        connection = Connection(url, service.name, seed)
        await connection.open(timeout_s)
        bus = cls(connection, service, settings=settings or ConsumerSettings(), clock=clock or SystemClock())
        try:
            yield bus
        finally:
            await bus.close()

    async def close(self) -> None:
        """Stop what still consumes and close the connection."""
        for consumption in self._consumptions:
            await consumption.stop(1.0)
        await self._connection.close()

    def encode(self, message: Message, *, cause: Delivery[Any] | None = None, id: str | None = None) -> Encoded:  # noqa: A002
        """The envelope of a declared message, for the outbox."""
        if type(message) not in self._produces:
            raise UndeclaredMessage(f"{self.service.name} does not declare that it produces {message.message_type()}")
        source = f"hatchery/{self.service.name}"
        return encode(message, source=source, id=id, cause=cause, time=self._clock.now())

    async def publish(self, message: Message, *, cause: Delivery[Any] | None = None, id: str | None = None) -> int:  # noqa: A002
        """Publish, acknowledged and retried; its stream sequence. With the same id it is stored once in ten minutes."""
        subject, headers, body = self.encode(message, cause=cause, id=id)
        return await self._publisher.publish(subject, headers, body)

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        """Publish outbox rows in order; raises PartialPublish, with the sequences of those stored, at the first that fails."""
        return await self._publisher.publish_rows(rows)

    async def publish_batch(self, rows: Sequence[OutgoingRow]) -> list[int]:
        """At most 100 rows of one stream, as one atomic batch."""
        return await self._publisher.publish_batch(rows)

    async def call(self, rpc: Rpc[Q, R], request: Q, *, timeout_ms: int | None = None) -> R:
        """Ask another service; raises RemoteError when it refuses, BusUnavailable when it does not answer."""
        if rpc not in self.service.calls:
            raise UndeclaredMessage(f"{self.service.name} does not declare that it calls {rpc.subject}")
        source = f"hatchery/{self.service.name}"
        return await rpcs.call(self._connection, rpc, request, source=source, timeout_ms=timeout_ms)

    @property
    def threads(self) -> ThreadLog:
        """The logs of threads."""
        if not (self.service.reads_threads or self.service.writes_threads):
            raise UndeclaredMessage(f"{self.service.name} does not declare that it reads or writes threads")
        return self._threads

    @property
    def routes(self) -> Routes:
        """The table of routes."""
        if not (self.service.reads_routes or self.service.writes_routes):
            raise UndeclaredMessage(f"{self.service.name} does not declare that it reads or writes routes")
        return self._routes

    async def subscribe(
        self,
        subscriptions: Sequence[Subscription],
        *,
        on_dead: OnDead | None = None,
        trial: Trial | None = None,
    ) -> Consumption:
        """Consume all declared messages that do not come in batches, in lanes, until the consumption is stopped."""
        return await self._started(
            lanes(self._connection, self._publisher, self.service, subscriptions, self._settings, on_dead, trial)
        )

    async def subscribe_batches(
        self,
        batches: Sequence[BatchSubscription],
        *,
        on_dead: OnDead | None = None,
        trial: Trial | None = None,
    ) -> Consumption:
        """Consume the declared `batched` messages until the consumption is stopped; only the owner should."""
        return await self._started(
            batched(self._connection, self._publisher, self.service, batches, self._settings, on_dead, trial)
        )

    async def _started(self, consumption: Consumption) -> Consumption:
        await consumption.start()
        self._consumptions = [one for one in self._consumptions if not one.stopped] + [consumption]
        return consumption

    async def serve(self, handlers: Sequence[RpcHandler], *, concurrency: int = 64) -> Running:
        """Answer declared rpcs until stopped, so many at a time."""
        for handler in handlers:
            if handler.rpc not in self.service.serves:
                raise UndeclaredMessage(f"{self.service.name} does not declare that it serves {handler.rpc.subject}")
        server = rpcs.RpcServer(self._connection, self.service.name, concurrency=concurrency)
        for handler in handlers:
            await server.serve(handler.rpc, handler.handler)
        await self._connection.flush()  # whoever asks from now on finds us
        return server

    def health(self) -> str | None:
        """What is wrong, in one sentence, or None: the connection, a right that is missing, a durable that is silent."""
        problem = self._connection.problem()
        if problem is not None:
            return problem
        return next((found for consumption in self._consumptions if (found := consumption.problem())), None)

    @property
    def connected(self) -> bool:
        """Whether the server can be spoken to now."""
        return self._connection.connected

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call this after each reconnect."""
        self._connection.on_reconnect(callback)

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        """Undo on_reconnect."""
        self._connection.forget_reconnect(callback)

    async def missing(self) -> str | None:
        """Names the durables of this service that the server does not have (readiness); None when all are there."""
        names = await missing(self._jetstream, [self.service])
        return f"missing on NATS: {', '.join(names)}; run `hatchery bus migrate`" if names else None

    async def lag(self) -> dict[str, int]:
        """Messages not handled yet, by `<stream>/<durable>`."""
        found: dict[str, int] = {}
        for durable in durables_of(self.service):
            info = await self._jetstream.find(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
            if info is not None:
                found[f"{durable.stream}/{durable.name}"] = int(info["num_pending"]) + int(info["num_ack_pending"])
        return found

    async def stream_state(self, stream: str) -> StreamState:
        """State of a stream that this service publishes to."""
        state = await self._jetstream.stream_state(stream)
        if state is None:
            raise BusUnavailable(f"stream {stream} is missing: run `hatchery bus migrate`")
        return state

    async def last_sequence(self, stream: str) -> int:
        """The last sequence of a stream that this service publishes to: when it goes back, history was lost."""
        return (await self.stream_state(stream)).last_sequence
