"""How far the stream is applied, by the bus's count of what still waits there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from hatchery_common.bus import BusUnavailable
from hatchery_common.bus.delivery import Delivery
from hatchery_common.clock import to_ms


class BusBacklog:
    """The port Backlog by the lag of the durable that brings the money events; only the owner applies them, so it alone asks."""

    def __init__(self, lag: Callable[[], Awaitable[Mapping[str, int]]], durable: str) -> None:
        self._lag = lag
        self._durable = durable
        self._applied_ms: int | None = None

    def applied(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """A batch is in: what was published before the earliest of it is taken to be in as well."""
        self._applied_ms = min(to_ms(delivery.time) for delivery in deliveries)

    async def complete_to_ms(self, now_ms: int) -> int | None:
        """Now when nothing waits; while something does, as far as the batches have come."""
        try:
            waiting = (await self._lag()).get(self._durable)
        except BusUnavailable:
            return None
        if waiting == 0:
            return now_ms
        return None if waiting is None or self._applied_ms is None else min(self._applied_ms, now_ms)
