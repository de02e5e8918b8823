"""What handlers raise that is no ordinary exception ends neither the consumer nor the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hatchery_common.bus import BatchSubscription, Bus, Delivery, Subscription
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import LedgerPosted
from hatchery_common.testing.everything import everything, posted, until

Open = Callable[..., Awaitable[Bus]]
WISHES = everything(consumes=(OpenAccount,))
LEDGER = everything(consumes=(LedgerPosted,), batched=(LedgerPosted,))


@pytest.mark.parametrize("error", [asyncio.CancelledError("from within"), SystemExit(3)])
async def test_what_is_no_ordinary_exception_is_a_failed_attempt(
    opened: Open, operator: Operator, error: BaseException
) -> None:
    bus = await opened(WISHES)
    errors, seen = [error], list[str]()

    async def handle(delivery: Delivery[Any]) -> None:
        if errors:
            raise errors.pop()
        seen.append(delivery.id)

    await bus.subscribe([Subscription(OpenAccount, handle)])
    await bus.publish(OpenAccount(tenant="t1"), id="first")
    await until(lambda: seen == ["first"])
    assert [record async for record in operator.read("DLQ")] == []


@pytest.mark.parametrize("error", [asyncio.CancelledError("from within"), SystemExit(3)])
async def test_what_is_no_ordinary_exception_does_not_end_the_consumer(
    opened: Open, operator: Operator, error: BaseException
) -> None:
    bus = await opened(LEDGER)
    done: list[int] = []
    errors = [error, error]

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        if errors:
            raise errors.pop()
        done.extend(delivery.message.version for delivery in deliveries)

    for number in range(5):
        await bus.publish(posted("t1", number))
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post)])
    await until(lambda: sorted(done) == [0, 1, 2, 3, 4])
    assert [record async for record in operator.read("DLQ")] == []
    assert bus.health() is None


async def test_a_collector_that_ends_by_itself_is_a_problem(opened: Open) -> None:
    bus = await opened(LEDGER)

    async def post(_: Sequence[Delivery[Any]]) -> None:
        return

    consumption = await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post)])
    consumption._consumers[0]._collectors[0].task.cancel()
    await until(lambda: "a collector ended by itself" in str(bus.health()))
    await consumption.stop(1)
    assert bus.health() is None
