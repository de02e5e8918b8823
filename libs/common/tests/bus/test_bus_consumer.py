"""The consumer with lanes on a real server: retries, dead letters, redelivery, draining."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hatchery_common.bus import Bus, Delivery, Subscription
from hatchery_common.bus import deadletter as dead
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.replay import Operator, Record
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.errors import Conflict, DependencyUnavailable, HatcheryError
from hatchery_common.testing.everything import QUICK, everything, until, until_async
from hatchery_common.testing.nats import NatsServer

Open = Callable[..., Awaitable[Bus]]
WISHES = everything(consumes=(OpenAccount,))


async def dead_letters(operator: Operator) -> list[Record]:
    return [record async for record in operator.read("DLQ")]


async def settled(operator: Operator) -> bool:
    """Everything that the stream holds has been handled: the server counts what is pending a moment late."""
    found = (await operator.durables("CMD"))[0]
    state = await operator.jetstream.stream_state("CMD")
    assert state is not None
    return found.unacknowledged == 0 and found.acknowledged_to >= state.last_sequence


class Handler:
    """Counts and fails as told."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.seen: list[Delivery[Any]] = []

    async def __call__(self, delivery: Delivery[Any]) -> None:
        self.seen.append(delivery)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


async def test_a_message_is_acknowledged_after_its_handler_returned(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    release, began = asyncio.Event(), asyncio.Event()

    async def wait(_: Delivery[Any]) -> None:
        began.set()
        await release.wait()

    await bus.subscribe([Subscription(OpenAccount, wait)])
    await bus.publish(OpenAccount(tenant="t1"))
    await began.wait()
    assert (await operator.durables("CMD"))[0].unacknowledged == 1
    release.set()
    await until_async(lambda: settled(operator))


async def test_a_failing_message_is_tried_again_in_its_lane(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handler = Handler(HatcheryError("not yet"), ValueError("a bug"), None)
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await bus.publish(OpenAccount(tenant="t1"), id="first")
    await bus.publish(OpenAccount(tenant="t1"), id="second")
    await until(lambda: len(handler.seen) == 4)
    assert [(found.id, found.deliveries) for found in handler.seen] == [
        ("first", 1),
        ("first", 2),
        ("first", 3),
        ("second", 1),
    ]
    await until_async(lambda: settled(operator))
    assert await dead_letters(operator) == []


async def test_after_the_last_delivery_it_is_a_dead_letter_with_its_reason(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handler = Handler(*(HatcheryError(f"no {number}\nreally") for number in range(9)))
    told: list[tuple[str, str]] = []

    async def on_dead(event_id: str, message_type: str) -> None:
        told.append((event_id, message_type))

    await bus.subscribe([Subscription(OpenAccount, handler)], on_dead=on_dead)
    await bus.publish(OpenAccount(tenant="t1"), id="bad")
    await until_async(lambda: settled(operator))
    assert len(handler.seen) == QUICK.max_deliveries
    (letter,) = await dead_letters(operator)
    assert letter.subject == "dlq.cmd.t1.account.open.t1"
    assert (letter.id, letter.type) == ("bad", "hatchery.account.open.v1")
    assert letter.headers[dead.CODE] == "internal"
    assert letter.headers[dead.REASON] == "no 2 really"
    assert (letter.headers[dead.STREAM], letter.headers[dead.SEQUENCE]) == ("CMD", "1")
    assert (letter.headers[dead.DURABLE], letter.headers[dead.DELIVERIES]) == ("everything", "3")
    assert letter.headers["Nats-Msg-Id"] == "CMD:1:everything"
    assert told == [("bad", "hatchery.account.open.v1")]


async def test_a_permanent_error_is_a_dead_letter_at_once(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handler = Handler(Conflict("never"))
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await bus.publish(OpenAccount(tenant="t1"))
    await until_async(lambda: settled(operator))
    (letter,) = await dead_letters(operator)
    assert (letter.headers[dead.CODE], letter.headers[dead.DELIVERIES]) == ("conflict", "1")
    assert len(handler.seen) == 1


async def test_a_missing_dependency_is_waited_for_without_a_count(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handler = Handler(*(DependencyUnavailable("Postgres is away") for _ in range(8)))
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await bus.publish(OpenAccount(tenant="t1"))
    await until_async(lambda: settled(operator))
    assert [found.deliveries for found in handler.seen] == [1] * 9
    assert await dead_letters(operator) == []


async def test_one_stuck_lane_does_not_hold_up_others(opened: Open) -> None:
    bus = await opened(WISHES, settings=dataclasses.replace(QUICK, concurrency=1))
    seen: list[str] = []

    async def handle(delivery: Delivery[Any]) -> None:
        if delivery.tenant == "stuck":
            raise DependencyUnavailable("away")
        seen.append(delivery.id)

    await bus.subscribe([Subscription(OpenAccount, handle)])
    await bus.publish(OpenAccount(tenant="stuck"))
    for number in range(20):
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
    await until(lambda: len(seen) == 20)


@pytest.mark.parametrize(
    ("headers", "body", "subject", "code"),
    [
        ({"ce-type": "hatchery.account.vanished.v9"}, b"{}", "cmd.t1.account.open.t1", "unknown_type"),
        ({}, b"{}", "cmd.t1.account.open.t1", "unknown_type"),
        ({"ce-type": "hatchery.account.open.v1"}, b"{}", "cmd.t1.account.open.t1", "broken_body"),
        ({"ce-type": "hatchery.account.open.v1"}, b"\xff\x00", "cmd.t1.account.open.t1", "broken_body"),
        ({"ce-type": "hatchery.account.open.v1"}, b'{"tenant":"t1"}', "cmd.t1.account.open.t1", "broken_envelope"),
        ("full", b'{"tenant":"t2"}', "cmd.t1.account.open.t1", "disagreement"),
        ("full", b'{"tenant":"t1"}', "cmd.t2.account.open.t1", "disagreement"),
        ("full", b'{"tenant":"t1"}', "cmd.t1.account.open.t2", "disagreement"),
    ],
)
async def test_what_is_no_message_of_ours_goes_to_the_dead_letters(
    opened: Open, operator: Operator, headers: Any, body: bytes, subject: str, code: str
) -> None:
    bus = await opened(WISHES)
    handler = Handler()
    full = bus.encode(OpenAccount(tenant="t1")).headers
    await operator.jetstream.publish(subject, body, full if headers == "full" else headers)
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await until_async(lambda: settled(operator))
    (letter,) = await dead_letters(operator)
    assert letter.headers[dead.CODE] == code
    assert letter.data == body
    assert letter.subject == f"dlq.{subject}"
    assert handler.seen == []


async def test_a_long_handler_keeps_its_message(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handled: list[int] = []

    async def slow(delivery: Delivery[Any]) -> None:
        await asyncio.sleep(0.6)
        handled.append(delivery.deliveries)

    # the server's own ack_wait is shortened below the handler's time
    info = await operator.jetstream.call("CONSUMER.INFO.CMD.everything")
    config = {**info["config"], "ack_wait": 200_000_000}
    body = {"stream_name": "CMD", "config": config, "action": "update"}
    await operator.jetstream.call("CONSUMER.DURABLE.CREATE.CMD.everything", body)
    bus._settings = dataclasses.replace(QUICK, ack_wait_s=0.2)
    await bus.subscribe([Subscription(OpenAccount, slow)])
    await bus.publish(OpenAccount(tenant="t1"))
    await until_async(lambda: settled(operator))
    assert handled == [1]
    assert (await operator.durables("CMD"))[0].redelivered == 0


async def test_draining_ends_what_runs_and_gives_the_rest_back(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES, settings=dataclasses.replace(QUICK, ack_wait_s=30))
    release = asyncio.Event()
    done: list[str] = []

    async def slow(delivery: Delivery[Any]) -> None:
        await release.wait()
        await asyncio.sleep(0.2)  # still runs when the stop comes
        done.append(delivery.id)

    async def all_are_here() -> bool:
        return (await operator.durables("CMD"))[0].unacknowledged == 5

    consumption = await bus.subscribe([Subscription(OpenAccount, slow)])
    for number in range(5):
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
    await until_async(all_are_here)
    release.set()
    await consumption.stop()
    assert done == ["0"]
    handler = Handler()
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await until(lambda: len(handler.seen) == 4, 3)
    assert [(found.id, found.deliveries) for found in handler.seen] == [(str(n), 2) for n in range(1, 5)]
    await until_async(lambda: settled(operator))


async def test_a_handler_that_does_not_end_is_cancelled_at_the_deadline(opened: Open) -> None:
    bus = await opened(WISHES)
    began = asyncio.Event()

    async def hang(_: Delivery[Any]) -> None:
        began.set()
        await asyncio.sleep(3600)

    consumption = await bus.subscribe([Subscription(OpenAccount, hang)])
    await bus.publish(OpenAccount(tenant="t1"), id="hung")
    await began.wait()
    await asyncio.wait_for(consumption.stop(0.1), 3)
    handler = Handler()
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await until(lambda: handler.seen, 3)
    assert handler.seen[0].id == "hung"


async def test_a_message_that_kills_its_process_each_time_is_not_handled_for_ever(
    opened: Open, operator: Operator, clean_nats: NatsServer
) -> None:
    bus = await opened(WISHES)
    await bus.publish(OpenAccount(tenant="t1"), id="deadly")
    connection = Connection(clean_nats.url, "crasher")
    await connection.open()
    crashes: list[str] = []

    async def crash(raw: Any) -> None:  # what a crash leaves behind: a delivery and no acknowledgement
        crashes.append(raw.reply)
        await connection.publish(raw.reply, b"-NAK")

    inbox = connection.new_inbox()
    await connection.subscribe(inbox, crash)
    for number in range(QUICK.max_deliveries):
        await connection.publish("$JS.API.CONSUMER.MSG.NEXT.CMD.everything", b'{"batch":1}', reply=inbox)
        await until(lambda number=number: len(crashes) == number + 1)
    await connection.close()
    handler = Handler()
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await until_async(lambda: settled(operator))
    (letter,) = await dead_letters(operator)
    assert letter.headers[dead.CODE] == "too_many_deliveries"
    assert handler.seen == []


async def test_more_messages_than_may_be_outstanding_all_arrive(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES, settings=dataclasses.replace(QUICK, outstanding=8, concurrency=4))
    handler = Handler()
    await bus.subscribe([Subscription(OpenAccount, handler)])
    for number in range(60):
        await bus.publish(OpenAccount(tenant=f"t{number % 7}"), id=str(number))
    await until(lambda: len(handler.seen) == 60)
    assert {found.id for found in handler.seen} == {str(number) for number in range(60)}
    await until_async(lambda: settled(operator))


async def test_a_pull_that_expired_is_asked_again(opened: Open) -> None:
    bus = await opened(WISHES, settings=dataclasses.replace(QUICK, expires_s=0.4, heartbeat_s=0.1))
    handler = Handler()
    await bus.subscribe([Subscription(OpenAccount, handler)])
    for number in range(4):
        await asyncio.sleep(0.3)
        await bus.publish(OpenAccount(tenant="t1"), id=str(number))
        await until(lambda number=number: len(handler.seen) == number + 1, 0.2)
    assert bus.health() is None


async def test_a_redriven_dead_letter_is_handled_and_keeps_its_id(opened: Open, operator: Operator) -> None:
    bus = await opened(WISHES)
    handler = Handler(Conflict("not now"), Conflict("nor now"))
    await bus.subscribe([Subscription(OpenAccount, handler)])
    await bus.publish(OpenAccount(tenant="t1"), id="again")
    await until_async(lambda: settled(operator))
    assert await operator.redrive(1) == await operator.redrive(1)
    await until(lambda: len(handler.seen) == 2)
    await until_async(lambda: settled(operator))
    assert [letter.headers.get(dead.REDRIVE, "0") for letter in await dead_letters(operator)] == ["0", "1"]
    await operator.redrive(2)
    await until(lambda: len(handler.seen) == 3)
    assert {found.id for found in handler.seen} == {"again"}
    assert len(await dead_letters(operator)) == 2
