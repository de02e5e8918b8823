"""One life of a service that the message `deadly` kills: run by test_bus_quarantine until nothing is left to handle."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from hatchery_common.bus import BatchSubscription, Bus, Delivery, Subscription, Trial
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.database import Database
from hatchery_common.quarantine import SqlQuarantine
from hatchery_common.testing.everything import QUICK, until_async
from hatchery_common.testing.example import open_account, service

ACK_WAIT_S = 0.4


async def live(nats_url: str, database_url: str, *, batches: bool) -> None:
    """Handle until the durable has nothing left."""
    declared = dataclasses.replace(service, batched=(OpenAccount,)) if batches else service
    database = Database(database_url, "example", produces=frozenset(service.produces))

    async def handle_all(deliveries: Sequence[Delivery[Any]]) -> None:
        for delivery in deliveries:
            await handle(delivery)

    async def handle(delivery: Delivery[Any]) -> None:
        if delivery.id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        await open_account(delivery, database=database)

    settings = dataclasses.replace(QUICK, ack_wait_s=ACK_WAIT_S, concurrency=1)
    async with Bus.open(nats_url, declared, settings=settings) as bus:
        hooks: dict[str, Any] = {"on_dead": database.mark_dead, "trial": Trial(SqlQuarantine(database))}
        if batches:
            await bus.subscribe_batches([BatchSubscription((OpenAccount,), handle_all)], **hooks)
        else:
            await bus.subscribe([Subscription(OpenAccount, handle)], **hooks)

        async def nothing_left() -> bool:
            return not any((await bus.lag()).values())

        await until_async(nothing_left, 20)
    await database.close()


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1], sys.argv[2], batches=sys.argv[3] == "batches"))
