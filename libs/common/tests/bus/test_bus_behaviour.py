"""What every bus does: run against the real one and against the recording one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hatchery_common.bus import (
    Bus,
    BusUnavailable,
    Delivery,
    OutgoingRow,
    RemoteError,
    SequenceConflict,
    Subscription,
    UndeclaredMessage,
    encode_route,
)
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.base import Rpc
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.instances import StopInstance
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hatchery_common.errors import InvalidInput, Refused, SetupError
from hatchery_common.service import RpcHandler
from hatchery_common.testing.everything import DOUBLE, Number, everything, until
from hatchery_common.testing.recording_bus import RecordingBus


@pytest.fixture(params=["recording", "real"])
async def either(request: pytest.FixtureRequest, opened: Callable[..., Awaitable[Bus]]) -> AsyncGenerator[Bus]:
    if request.param == "recording":
        async with RecordingBus.open_recording(everything()) as bus:
            yield bus
    else:
        yield await opened()


async def ignore(_: Delivery[Any]) -> None:
    return


def entry(number: int) -> ThreadEntry:
    return ThreadEntry(id=f"e{number}", type=ThreadEntryType.TEXT_DELTA, thread_id="thd_1", at_ms=number)


def route(instance: str, version: int) -> Route:
    return Route(
        instance_id=instance, tenant="t1", state=RouteState.RUNNING, route_version=version, changed_at_ms=version
    )


async def test_a_message_gets_the_next_sequence_and_the_same_id_is_stored_once(either: Bus) -> None:
    first = await either.publish(OpenAccount(tenant="t1"), id="one")
    assert await either.publish(OpenAccount(tenant="t1"), id="one") == first
    assert await either.publish(OpenAccount(tenant="t1"), id="two") == first + 1


async def test_what_is_not_declared_is_refused(either: Bus) -> None:
    stop = StopInstance(tenant="t1", instance_id="ins_1", operation_id="op_1", generation=1)
    with pytest.raises(UndeclaredMessage):
        await either.publish(stop)
    with pytest.raises(UndeclaredMessage):
        await either.call(Rpc("other", "thing", Number, Number), Number(n=1))
    with pytest.raises(UndeclaredMessage):
        await either.subscribe([Subscription(StopInstance, ignore)])
    with pytest.raises(UndeclaredMessage):
        await either.serve([RpcHandler(Rpc("other", "thing", Number, Number), ignore)])


async def test_a_declared_message_without_a_handler_is_refused_at_the_start(either: Bus) -> None:
    with pytest.raises(SetupError, match=r"hatchery\.account\.opened\.v1"):
        await either.subscribe([Subscription(OpenAccount, ignore)])


@pytest.mark.parametrize("tenant", ["", "a.b", "a b", "*", ">", "UPPER"])
async def test_a_tenant_that_cannot_stand_in_a_subject_is_refused(either: Bus, tenant: str) -> None:
    with pytest.raises(InvalidInput):
        await either.publish(OpenAccount(tenant=tenant))


async def test_a_handler_gets_message_and_envelope_and_causes_are_handed_on(either: Bus) -> None:
    opened: list[Delivery[AccountOpened]] = []

    async def open_account(delivery: Delivery[OpenAccount]) -> None:
        await either.publish(AccountOpened(tenant=delivery.tenant, opened_at_ms=1), cause=delivery, id="fact")

    async def note(delivery: Delivery[AccountOpened]) -> None:
        opened.append(delivery)

    await either.subscribe([Subscription(OpenAccount, open_account), Subscription(AccountOpened, note)])
    await either.publish(OpenAccount(tenant="t1"), id="wish")
    await until(lambda: opened)
    found = opened[0]
    assert found.message == AccountOpened(tenant="t1", opened_at_ms=1)
    assert (found.id, found.causation_id, found.correlation_id) == ("fact", "wish", "wish")
    assert (found.type, found.tenant, found.source) == ("hatchery.account.opened.v1", "t1", "hatchery/everything")
    assert (found.stream, found.subject, found.deliveries) == ("EVT", "evt.t1.account.opened.t1", 1)
    assert found.traceparent is not None
    assert found.traceparent.startswith("00-")


async def test_messages_of_one_key_are_handled_in_order(either: Bus) -> None:
    seen: dict[str, list[str]] = {}

    async def note(delivery: Delivery[OpenAccount]) -> None:
        await asyncio.sleep(0.001)
        seen.setdefault(delivery.tenant, []).append(delivery.id)

    await either.subscribe([Subscription(OpenAccount, note), Subscription(AccountOpened, ignore)])
    for number in range(20):
        for tenant in ("ta", "tb", "tc"):
            await either.publish(OpenAccount(tenant=tenant), id=f"{tenant}-{number}")
    await until(lambda: sum(map(len, seen.values())) == 60)
    assert seen == {tenant: [f"{tenant}-{number}" for number in range(20)] for tenant in ("ta", "tb", "tc")}


async def test_after_stop_no_handler_runs(either: Bus) -> None:
    seen: list[str] = []

    async def note(delivery: Delivery[OpenAccount]) -> None:
        seen.append(delivery.id)

    consumption = await either.subscribe([Subscription(OpenAccount, note), Subscription(AccountOpened, ignore)])
    await either.publish(OpenAccount(tenant="t1"), id="before")
    await until(lambda: seen)
    await consumption.stop()
    await either.publish(OpenAccount(tenant="t1"), id="after")
    await asyncio.sleep(0.05)
    assert seen == ["before"]


async def test_an_rpc_is_answered(either: Bus) -> None:
    async def double(request: Number) -> Number:
        return Number(n=2 * request.n)

    await either.serve([RpcHandler(DOUBLE, double)])
    assert await either.call(DOUBLE, Number(n=21)) == Number(n=42)


async def test_an_rpc_refusal_comes_with_code_message_and_hint(either: Bus) -> None:
    async def refuse(_: Number) -> Number:
        raise Refused("not you", hint="ask another")

    await either.serve([RpcHandler(DOUBLE, refuse)])
    with pytest.raises(RemoteError) as raised:
        await either.call(DOUBLE, Number(n=1))
    assert (raised.value.remote_code, raised.value.message, raised.value.hint) == ("refused", "not you", "ask another")


async def test_an_rpc_that_nobody_answers_is_unavailable(either: Bus) -> None:
    with pytest.raises(BusUnavailable):
        await either.call(DOUBLE, Number(n=1))


async def test_rows_keep_their_order_and_are_stored_once(either: Bus) -> None:
    rows = []
    for number in range(5):
        encoded = either.encode(AccountOpened(tenant="t1", opened_at_ms=number), id=f"row-{number}")
        rows.append(OutgoingRow(f"row-{number}", encoded.subject, encoded.headers, encoded.body))
    sequences = await either.publish_rows(rows)
    assert sequences == list(range(sequences[0], sequences[0] + 5))
    assert await either.publish_rows(rows) == sequences


async def test_a_thread_is_appended_under_its_last_sequence(either: Bus) -> None:
    threads = either.threads
    assert await threads.bounds("t1", "thd_1") == (0, 0)
    first = await threads.append("t1", "thd_1", [entry(1)], expected_last=0)
    last = await threads.append("t1", "thd_1", [entry(2), entry(3)], expected_last=first)
    assert await threads.bounds("t1", "thd_1") == (first, last)
    with pytest.raises(SequenceConflict):
        await threads.append("t1", "thd_1", [entry(4), entry(5)], expected_last=first)
    with pytest.raises(SequenceConflict):
        await threads.append("t1", "thd_1", [entry(6)], expected_last=0)
    assert await threads.append("t1", "thd_1", [entry(2), entry(3)], expected_last=first) == last
    assert [found.entry.id async for found in threads.read("t1", "thd_1")] == ["e1", "e2", "e3"]
    assert [found.entry.id async for found in threads.read("t1", "thd_1", after=first)] == ["e2", "e3"]
    assert [found async for found in threads.read("t1", "thd_2")] == []


async def test_a_thread_is_followed_from_where_the_reader_was(either: Bus) -> None:
    threads = either.threads
    last = await threads.append("t1", "thd_1", [entry(1), entry(2)], expected_last=0)
    seen: list[str] = []

    async def follow() -> None:
        async for found in threads.follow("t1", "thd_1", after=1):
            seen.extend([] if found is None else [found.entry.id])

    follower = asyncio.create_task(follow())
    await until(lambda: seen == ["e2"])
    await threads.append("t1", "thd_2", [entry(9)], expected_last=0)
    last = await threads.append("t1", "thd_1", [entry(3), entry(4)], expected_last=last)
    await threads.append("t1", "thd_1", [entry(5)], expected_last=last)
    await until(lambda: seen == ["e2", "e3", "e4", "e5"])
    follower.cancel()


async def test_a_slow_reader_of_a_thread_misses_nothing(opened: Callable[..., Awaitable[Bus]]) -> None:
    threads = (await opened()).threads
    follower = threads.follow("t1", "thd_1")
    last = await threads.append("t1", "thd_1", [entry(1)], expected_last=0)
    assert (await anext(follower)) is not None
    for number in range(2, 602, 50):  # while nobody reads: more than the queue takes
        batch = [entry(one) for one in range(number, number + 50)]
        last = await threads.append("t1", "thd_1", batch, expected_last=last)
    seen = [1]
    async with asyncio.timeout(20), aclosing(follower):
        while seen[-1] < 601:
            found = await anext(follower)
            seen += [found.entry.at_ms] if found is not None else []
    assert seen == list(range(1, 602))


async def test_routes_are_read_as_a_whole_and_each_put_is_heard(either: Bus) -> None:
    heard: list[Route] = []
    await either.routes.follow(heard.append)
    for number, put in enumerate([route("ins_1", 1), route("ins_2", 1), route("ins_1", 2)]):
        encoded = encode_route(put)
        await either.publish_rows([OutgoingRow(f"put-{number}", encoded.subject, encoded.headers, encoded.body)])
    assert await either.routes.snapshot() == {"ins_1": route("ins_1", 2), "ins_2": route("ins_2", 1)}
    await until(lambda: len(heard) == 3)
    assert [(put.instance_id, put.route_version) for put in heard] == [("ins_1", 1), ("ins_2", 1), ("ins_1", 2)]


async def test_a_healthy_bus_says_nothing(either: Bus) -> None:
    assert either.connected
    assert either.health() is None
    assert await either.missing() is None
