"""The consumer with lanes: one message at a time per key, many keys at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hatchery_common.bus.attempts import Attempts, ConsumerSettings, Held
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.deadletter import OnDead
from hatchery_common.bus.delivery import Subscription
from hatchery_common.bus.intake import Intake
from hatchery_common.bus.lanes import Lanes
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.quarantine import Trial
from hatchery_common.bus.registry import Registry


class Consumer(Intake):
    """Handles one durable's messages in lanes."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        stream: str,
        durable: str,
        subscriptions: Sequence[Subscription],
        *,
        settings: ConsumerSettings,
        on_dead: OnDead | None,
        trial: Trial | None = None,
    ) -> None:
        registry = Registry(subscription.message for subscription in subscriptions)
        super().__init__(connection, registry, stream, durable, settings, outstanding=settings.outstanding)
        self._by_type: Mapping[str, Subscription] = {s.message.message_type(): s for s in subscriptions}
        self._attempts = Attempts(connection, publisher, durable, settings, on_dead, trial, self.release)
        self._lanes: Lanes[Held] = Lanes(self._attempts.run, concurrency=settings.concurrency)

    def accept(self, held: Held) -> None:
        """Put the message into its lane; one that cannot be read has a lane to itself."""
        delivery = held.delivery
        if delivery is None:
            self._lanes.put(f"!{held.place.sequence}", held)
            return
        subscription = self._by_type[delivery.type]
        held.handle, held.farewell = subscription.handler, subscription.on_dead
        message = delivery.message
        self._lanes.put(message.aggregate_id if subscription.lane is None else subscription.lane(message), held)

    async def stop(self, deadline_s: float) -> None:
        """Stop pulling, let running handlers end, give the rest back."""
        await self.close()
        await self._lanes.stop(deadline_s)
        await self.give_back(self.held())
