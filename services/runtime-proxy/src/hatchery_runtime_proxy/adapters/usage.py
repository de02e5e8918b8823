"""Usage events on the bus, acknowledged."""

from __future__ import annotations

from hatchery_common.bus import Bus
from hatchery_common.contracts.gateways import UsageOpened, UsageRecorded


class BusUsage:
    """The port `UsageLog`; the id of each event follows from its call, so a repetition is stored once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def opened(self, event: UsageOpened) -> None:
        """A call is about to leave."""
        await self._bus.publish(event, id=f"{event.call_id}-opened")

    async def recorded(self, event: UsageRecorded) -> None:
        """A call has ended."""
        await self._bus.publish(event, id=f"{event.call_id}-recorded")
