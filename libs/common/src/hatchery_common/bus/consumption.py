"""Which consumers follow from a service's declaration, and how they are started and drained together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hatchery_common.bus.attempts import ConsumerSettings
from hatchery_common.bus.batches import BatchConsumer
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.consumer import Consumer
from hatchery_common.bus.deadletter import OnDead
from hatchery_common.bus.delivery import BatchSubscription, Subscription
from hatchery_common.bus.errors import UndeclaredMessage
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.quarantine import Trial
from hatchery_common.bus.registry import durable_name, stream_of
from hatchery_common.contracts.base import Message
from hatchery_common.errors import SetupError

if TYPE_CHECKING:
    from hatchery_common.service import Service


class Consumption:
    """Consumers that run together; `problem()` names what keeps them from working."""

    def __init__(self, consumers: Sequence[Consumer | BatchConsumer]) -> None:
        self._consumers = list(consumers)
        self.stopped = False

    async def start(self) -> None:
        """Begin to pull."""
        for consumer in self._consumers:
            await consumer.start()

    def problem(self) -> str | None:
        """The first trouble of any of them."""
        if self.stopped:
            return None
        return next((consumer.problem for consumer in self._consumers if consumer.problem), None)

    async def stop(self, deadline_s: float = 10.0) -> None:
        """Drain: stop pulling, let running handlers end within the deadline, give the rest back; again is nothing."""
        if self.stopped:
            return
        self.stopped = True
        await asyncio.gather(*(consumer.stop(deadline_s) for consumer in self._consumers))


def lanes(
    connection: Connection,
    publisher: Publisher,
    service: Service,
    subscriptions: Sequence[Subscription],
    settings: ConsumerSettings,
    on_dead: OnDead | None,
    trial: Trial | None,
) -> Consumption:
    """One consumer with lanes per stream, for all declared messages that do not come in batches."""
    wanted = [message for message in service.consumes if message not in service.batched]
    compare(service.name, wanted, [subscription.message for subscription in subscriptions])
    by_stream: dict[str, list[Subscription]] = {}
    for subscription in subscriptions:
        by_stream.setdefault(stream_of(subscription.message.subject_filter()), []).append(subscription)
    durable = durable_name(service.name)
    return Consumption(
        [
            Consumer(
                connection,
                publisher,
                stream,
                durable,
                chosen,
                settings=settings,
                on_dead=on_dead,
                trial=trial,
            )
            for stream, chosen in by_stream.items()
        ]
    )


def batched(
    connection: Connection,
    publisher: Publisher,
    service: Service,
    batches: Sequence[BatchSubscription],
    settings: ConsumerSettings,
    on_dead: OnDead | None,
    trial: Trial | None,
) -> Consumption:
    """One batch consumer per stream, for the declared `batched` messages."""
    wanted = [message for message in service.consumes if message in service.batched]
    compare(service.name, wanted, [message for batch in batches for message in batch.messages])
    by_stream: dict[str, list[BatchSubscription]] = {}
    for batch in batches:
        found = {stream_of(message.subject_filter()) for message in batch.messages}
        if len(found) != 1:
            raise SetupError("a batch mixes commands and events", hint="write one BatchSubscription for each")
        by_stream.setdefault(found.pop(), []).append(batch)
    durable = durable_name(service.name, batch=True)
    return Consumption(
        [
            BatchConsumer(
                connection,
                publisher,
                stream,
                durable,
                chosen,
                settings=settings,
                on_dead=on_dead,
                trial=trial,
            )
            for stream, chosen in by_stream.items()
        ]
    )


def compare(name: str, declared: Sequence[type[Message]], handled: Sequence[type[Message]]) -> None:
    """Raise unless exactly the declared messages are handled, each once."""
    undeclared = [message.message_type() for message in handled if message not in declared]
    if undeclared:
        listed = ", ".join(undeclared)
        raise UndeclaredMessage(
            f"{name} handles {listed} without declaring that it consumes them so (`consumes`, and `batched` for batches)"
        )
    wrong = [message.message_type() for message in declared if handled.count(message) != 1]
    if wrong:
        raise SetupError(f"{name} declares but does not handle, or handles twice: {', '.join(wrong)}")
