"""The batch consumer: many messages in one call of the handler, then acknowledged together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from hatchery_common.bus.attempts import Attempts, ConsumerSettings, Held, is_being_cancelled
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.deadletter import OnDead
from hatchery_common.bus.delivery import BatchSubscription, Delivery
from hatchery_common.bus.intake import Intake
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.quarantine import Trial
from hatchery_common.bus.registry import Registry
from hatchery_common.errors import HatcheryError, Retry
from hatchery_common.guard import guarded

log = structlog.get_logger("hatchery.bus")


class _Collector:
    """One batch subscription: collects, calls the handler, and after a failure finds the poisonous message alone.

    While a dependency is down the whole batch waits. A message that fails alone is set aside and tried again later; the
    others go on, for what comes in batches is keyed by its own idempotency key or version, never by order.
    """

    def __init__(self, subscription: BatchSubscription, attempts: Attempts) -> None:
        self._subscription = subscription
        self._attempts = attempts
        self._queue: deque[Held] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._aside: set[asyncio.TimerHandle] = set()
        self._retries: deque[Held] = deque()
        self._busy = False
        self._quiet = asyncio.Event()
        self._stopping = False
        self.task = asyncio.get_running_loop().create_task(self._work())

    def put(self, held: Held) -> None:
        held.handle = self._alone
        self._queue.append(held)
        self._arrived.set()
        if len(self._queue) >= self._subscription.max_messages:
            self._full.set()

    async def stop(self, deadline_s: float) -> None:
        self._stopping = True
        for timer in self._aside:
            timer.cancel()
        if self._busy:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), deadline_s)
            except TimeoutError:
                pass
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=1.0)

    async def _alone(self, delivery: Delivery[Any]) -> None:
        await self._subscription.handler([delivery])

    async def _work(self) -> None:
        while not self._stopping:
            await self._arrived.wait()
            self._arrived.clear()
            while self._retries and not self._stopping:
                await self._marked(self._single(self._retries.popleft()))
            if self._queue and not self._stopping:
                batch = await self._collect()
                await self._marked(self._process(batch))

    async def _marked(self, work: Any) -> None:
        self._busy = True
        try:
            await work
        finally:
            self._busy = False
            self._quiet.set()

    async def _collect(self) -> list[Held]:
        """What is there once the batch is full or its first message has waited long enough."""
        most = self._subscription.max_messages
        if len(self._queue) < most:
            self._full.clear()
            try:
                await asyncio.wait_for(self._full.wait(), self._subscription.max_wait_ms / 1000)
            except TimeoutError:
                pass
        batch = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        if self._queue:
            self._arrived.set()
        return batch

    async def _process(self, batch: list[Held]) -> None:
        alone = [
            held for held in batch if held.dead is not None or held.delivery is None or self._attempts.is_suspect(held)
        ]
        together = [held for held in batch if held not in alone]
        if len(together) == 1 or (together and not await self._at_once(together)):
            alone += together
        for held in alone:
            if self._stopping:
                return
            await self._single(held)

    async def _at_once(self, batch: list[Held]) -> bool:
        """Call the handler with all of them; False when one of them is to blame."""
        carrier = batch[0]
        while not self._stopping:
            try:
                deliveries = [held.delivery for held in batch if held.delivery is not None]
                await guarded(self._subscription.handler(deliveries), "a handler")
            except HatcheryError as error:
                if error.retry is not Retry.DEPENDENCY:
                    return False
                await asyncio.sleep(self._attempts.judge(carrier, error))
                continue
            except (Exception, asyncio.CancelledError):
                if is_being_cancelled():
                    raise
                log.warning("bus.batch_failed", size=len(batch), first=carrier.place.sequence, exc_info=True)
                return False
            for held in batch:
                self._attempts.settle(held)
            return True
        return True

    async def _single(self, held: Held) -> None:
        delay = await self._attempts.run(held)
        while delay == 0.0:
            delay = await self._attempts.run(held)
        if delay is not None:
            loop = asyncio.get_running_loop()
            timers: list[asyncio.TimerHandle] = []
            timers.append(loop.call_later(delay, lambda: self._again(held, timers[0])))
            self._aside.add(timers[0])

    def _again(self, held: Held, timer: asyncio.TimerHandle) -> None:
        self._aside.discard(timer)
        self._retries.append(held)
        self._arrived.set()


class BatchConsumer(Intake):
    """Handles one durable's messages in batches, each batch subscription with a collector of its own."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        stream: str,
        durable: str,
        subscriptions: Sequence[BatchSubscription],
        *,
        settings: ConsumerSettings,
        on_dead: OnDead | None,
        trial: Trial | None = None,
    ) -> None:
        registry = Registry(message for subscription in subscriptions for message in subscription.messages)
        most = max(settings.outstanding, *(2 * subscription.max_messages for subscription in subscriptions))
        super().__init__(connection, registry, stream, durable, settings, outstanding=most)
        attempts = Attempts(connection, publisher, durable, settings, on_dead, trial, self.release)
        self._collectors = [_Collector(subscription, attempts) for subscription in subscriptions]
        self._by_type: Mapping[str, _Collector] = {
            message.message_type(): collector
            for subscription, collector in zip(subscriptions, self._collectors, strict=True)
            for message in subscription.messages
        }

    def accept(self, held: Held) -> None:
        """Give the message to its collector; any may bury one that cannot be read."""
        delivery = held.delivery
        collector = self._collectors[0] if delivery is None else self._by_type[delivery.type]
        collector.put(held)

    @property
    def problem(self) -> str | None:
        """As of any intake; also a collector that ended by itself, whose messages nobody would handle."""
        if not self._closed and any(collector.task.done() for collector in self._collectors):
            return f"durable {self.pull.durable} on {self.pull.stream}: a collector ended by itself"
        return super().problem

    async def stop(self, deadline_s: float) -> None:
        """Stop pulling, let the running batch end, give the rest back."""
        await self.close()
        await asyncio.gather(*(collector.stop(deadline_s) for collector in self._collectors))
        await self.give_back(self.held())
