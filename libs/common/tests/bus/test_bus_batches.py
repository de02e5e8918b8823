"""The batch consumer on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hatchery_common.bus import BatchSubscription, Bus, Delivery, OutgoingRow
from hatchery_common.bus import deadletter as dead
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.billing import AccountOpened, LedgerPosted
from hatchery_common.errors import Conflict, DependencyUnavailable, HatcheryError
from hatchery_common.testing.everything import QUICK, everything, posted, until, until_async

Open = Callable[..., Awaitable[Bus]]
LEDGER = everything(consumes=(LedgerPosted,), batched=(LedgerPosted,))


async def publish(bus: Bus, count: int) -> None:
    rows = []
    for number in range(count):
        encoded = bus.encode(posted(f"t{number % 3}", number), id=f"p{number}")
        rows.append(OutgoingRow(f"p{number}", encoded.subject, encoded.headers, encoded.body))
    await bus.publish_rows(rows)


async def settled(operator: Operator) -> bool:
    """Everything that the stream holds has been handled: the server counts what is pending a moment late."""
    found = (await operator.durables("EVT"))[0]
    state = await operator.jetstream.stream_state("EVT")
    assert state is not None
    return found.unacknowledged == 0 and found.acknowledged_to >= state.last_sequence


async def test_many_messages_come_in_few_calls_and_are_acknowledged(opened: Open, operator: Operator) -> None:
    bus = await opened(LEDGER)
    sizes: list[int] = []
    seen: list[int] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        sizes.append(len(deliveries))
        seen.extend(delivery.message.version for delivery in deliveries)

    await publish(bus, 250)
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post, max_messages=100)])
    await until(lambda: len(seen) == 250)
    assert seen == list(range(250))
    assert max(sizes) == 100
    assert len(sizes) <= 6
    await until_async(lambda: settled(operator))


async def test_a_batch_does_not_wait_for_ever_to_be_full(opened: Open) -> None:
    bus = await opened(LEDGER)
    sizes: list[int] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        sizes.append(len(deliveries))

    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post, max_messages=100, max_wait_ms=20)])
    await publish(bus, 3)
    await until(lambda: sum(sizes) == 3, 1)


async def test_one_poisonous_message_dies_alone(opened: Open, operator: Operator) -> None:
    bus = await opened(LEDGER)
    done: list[int] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        versions = [delivery.message.version for delivery in deliveries]
        if 7 in versions:
            raise Conflict("seven never")
        if 8 in versions:
            raise ValueError("eight is a bug")
        done.extend(versions)

    await publish(bus, 20)
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post)])
    await until_async(lambda: settled(operator))
    assert sorted(done) == [number for number in range(20) if number not in (7, 8)]
    letters = [record async for record in operator.read("DLQ")]
    assert {(letter.id, letter.headers[dead.CODE]) for letter in letters} == {("p7", "conflict"), ("p8", "internal")}
    assert {letter.headers[dead.DURABLE] for letter in letters} == {"everything-batch"}


async def test_a_message_that_fails_for_a_while_does_not_hold_up_the_others(opened: Open, operator: Operator) -> None:
    bus = await opened(LEDGER)
    done: list[int] = []
    failures: list[int] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(delivery.message.version == 0 for delivery in deliveries) and len(failures) < QUICK.max_deliveries:
            failures.append(len(deliveries))
            raise HatcheryError("not yet")
        done.extend(delivery.message.version for delivery in deliveries)

    await publish(bus, 10)
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post)])
    await until(lambda: len(done) == 10)
    assert done == [*range(1, 10), 0]
    await until_async(lambda: settled(operator))


async def test_a_missing_dependency_holds_the_whole_batch_without_a_count(opened: Open, operator: Operator) -> None:
    bus = await opened(LEDGER)
    sizes: list[int] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        sizes.append(len(deliveries))
        if len(sizes) < 8:
            raise DependencyUnavailable("Postgres is away")

    await publish(bus, 5)
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), post)])
    await until_async(lambda: settled(operator))
    assert sizes == [5] * 8
    assert [record async for record in operator.read("DLQ")] == []


async def test_two_batches_share_a_durable_and_unreadable_messages_die(opened: Open, operator: Operator) -> None:
    both = (LedgerPosted, AccountOpened)
    bus = await opened(everything(consumes=both, batched=both))
    ledger: list[str] = []
    accounts: list[str] = []

    async def post(deliveries: Sequence[Delivery[Any]]) -> None:
        ledger.extend(delivery.id for delivery in deliveries)

    async def open_accounts(deliveries: Sequence[Delivery[Any]]) -> None:
        accounts.extend(delivery.id for delivery in deliveries)

    await bus.publish(AccountOpened(tenant="t1", opened_at_ms=1), id="a")
    await operator.jetstream.publish("evt.t1.ledger.posted.t1", b"{}", {"ce-type": "hatchery.ledger.posted.v1"})
    await publish(bus, 2)
    await bus.subscribe_batches(
        [BatchSubscription((AccountOpened,), open_accounts), BatchSubscription((LedgerPosted,), post)]
    )
    await until_async(lambda: settled(operator))
    assert (ledger, accounts) == (["p0", "p1"], ["a"])
    assert len([record async for record in operator.read("DLQ")]) == 1


async def test_stopping_gives_back_what_was_not_handled(opened: Open, operator: Operator) -> None:
    bus = await opened(LEDGER)
    began = asyncio.Event()
    seen: list[str] = []

    async def hang(_: Sequence[Delivery[Any]]) -> None:
        began.set()
        await asyncio.sleep(3600)

    async def note(deliveries: Sequence[Delivery[Any]]) -> None:
        seen.extend(delivery.id for delivery in deliveries)

    await publish(bus, 4)
    consumption = await bus.subscribe_batches([BatchSubscription((LedgerPosted,), hang, max_messages=2)])
    await began.wait()
    await asyncio.wait_for(consumption.stop(0.1), 3)
    await bus.subscribe_batches([BatchSubscription((LedgerPosted,), note)])
    await until(lambda: len(seen) == 4, 3)
    await until_async(lambda: settled(operator))
