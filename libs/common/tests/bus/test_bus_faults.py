"""The server dies, freezes or forgets: everything recovers without a restart of ours."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hatchery_common.bus import Bus, BusUnavailable, Delivery, OutgoingRow, PartialPublish, Subscription
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hatchery_common.errors import Conflict, DependencyUnavailable, Refused
from hatchery_common.service import RpcHandler
from hatchery_common.testing.everything import DOUBLE, QUICK, Number, everything, until, until_async
from hatchery_common.testing.nats import NatsServer

pytestmark = pytest.mark.chaos
WISHES = everything(consumes=(OpenAccount,))


@pytest.fixture
async def server(own_nats: NatsServer) -> NatsServer:
    own_nats.start()
    async with Operator.open(own_nats.url) as operator:
        await operator.migrate([WISHES])
    return own_nats


class Seen:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def __call__(self, delivery: Delivery[Any]) -> None:
        self.ids.append(delivery.id)


async def test_a_letter_is_sent_once_however_long_its_inbox_fails(server: NatsServer) -> None:
    """The server would know it again for ten minutes; an inbox may be away for longer."""
    letters: list[str] = []
    told: list[str] = []

    async def refuse(_: Delivery[Any]) -> None:
        raise Conflict("never")

    async def on_dead(event_id: str, _: str) -> None:
        told.append(event_id)
        if len(told) < 4:
            raise DependencyUnavailable("the database is away")

    watching = Connection(server.url, "watcher")
    await watching.open()
    await watching.subscribe_directly("dlq.>", lambda raw: letters.append(raw.subject))
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        await bus.subscribe([Subscription(OpenAccount, refuse)], on_dead=on_dead)
        await bus.publish(OpenAccount(tenant="t1"), id="bad")
        await until(lambda: len(told) == 4)
        await watching.flush()
    assert (letters, told) == (["dlq.cmd.t1.account.open.t1"], ["bad"] * 4)
    await watching.close()


async def test_everything_survives_a_killed_server(server: NatsServer) -> None:
    seen = Seen()
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        reconnects: list[int] = []
        bus.on_reconnect(lambda: reconnects.append(1))
        await bus.subscribe([Subscription(OpenAccount, seen)])

        async def publish_all() -> None:
            for number in range(150):
                await bus.publish(OpenAccount(tenant=f"t{number % 5}"), id=str(number))

        publishing = asyncio.create_task(publish_all())
        for number in (1, 2):
            await until(lambda: len(seen.ids) > 10)
            server.kill()
            await asyncio.sleep(0.3)
            assert not publishing.done()
            assert bus.health() is not None
            server.start()
            await until(lambda number=number: len(reconnects) == number)  # a kill before that would be the same outage
        await asyncio.wait_for(publishing, 20)
        await until(lambda: set(seen.ids) == {str(number) for number in range(150)})
        assert await bus.last_sequence("CMD") == 150  # retried, and stored once each
        assert len(reconnects) == 2
        assert bus.health() is None


async def test_rows_interrupted_by_a_restart_are_completed_in_order(server: NatsServer) -> None:
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        rows = []
        for number in range(400):
            encoded = bus.encode(AccountOpened(tenant="t1", opened_at_ms=number), id=f"r{number}")
            rows.append(OutgoingRow(f"r{number}", encoded.subject, encoded.headers, encoded.body))
        publishing = asyncio.create_task(bus.publish_rows(rows))
        await asyncio.sleep(0.02)
        server.kill()
        await asyncio.sleep(0.2)
        server.start()
        sequences = await asyncio.wait_for(publishing, 20)
        assert sequences == list(range(1, 401))


async def test_a_row_that_cannot_be_stored_stops_the_rest_and_says_what_was_done(server: NatsServer) -> None:
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        rows = []
        for number in range(5):
            encoded = bus.encode(AccountOpened(tenant="t1", opened_at_ms=number), id=f"r{number}")
            body = b"x" * 300_000 if number == 3 else encoded.body
            rows.append(OutgoingRow(f"r{number}", encoded.subject, encoded.headers, body))
        with pytest.raises(PartialPublish) as raised:
            await bus.publish_rows(rows)
        assert raised.value.published == [1, 2, 3]
        assert raised.value.failed.id == "r3"
        assert await bus.last_sequence("EVT") == 3


async def test_publishing_gives_up_at_its_deadline(server: NatsServer) -> None:
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        bus._publisher._deadline_s = 0.5
        server.kill()
        await until(lambda: not bus.connected)
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(bus.publish(OpenAccount(tenant="t1")), 2)


async def test_a_frozen_server_is_waited_for(server: NatsServer) -> None:
    seen = Seen()
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        await bus.subscribe([Subscription(OpenAccount, seen)])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            publishing = asyncio.create_task(bus.publish(OpenAccount(tenant="t1"), id="frozen"))
            with pytest.raises(BusUnavailable):
                await bus.call(DOUBLE, Number(n=1), timeout_ms=200)
            await asyncio.sleep(1.5)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await asyncio.wait_for(publishing, 10) == 1
        await until(lambda: seen.ids == ["frozen"])


async def test_rpc_and_threads_go_on_after_a_restart(server: NatsServer) -> None:
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:

        async def double(request: Number) -> Number:
            return Number(n=2 * request.n)

        async def answered() -> bool:
            try:
                return (await bus.call(DOUBLE, Number(n=4))).n == 8
            except BusUnavailable:
                return False

        seen: list[str] = []

        async def follow() -> None:
            async for found in bus.threads.follow("t1", "thd_1"):
                seen.extend([] if found is None else [found.entry.id])

        await bus.serve([RpcHandler(DOUBLE, double)])
        follower = asyncio.create_task(follow())
        last = await bus.threads.append("t1", "thd_1", [entry(1)], expected_last=0)
        server.kill()
        await asyncio.sleep(0.2)
        server.start()
        last = await bus.threads.append("t1", "thd_1", [entry(2), entry(3)], expected_last=last)
        await until_async(answered)
        await bus.threads.append("t1", "thd_1", [entry(4)], expected_last=last)
        await until(lambda: seen == ["e1", "e2", "e3", "e4"])
        follower.cancel()


async def test_a_missing_durable_is_named_and_picked_up_when_it_returns(server: NatsServer) -> None:
    seen = Seen()
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus, Operator.open(server.url) as operator:
        await bus.subscribe([Subscription(OpenAccount, seen)])
        await asyncio.sleep(0.2)
        await operator.jetstream.call("CONSUMER.DELETE.CMD.everything")
        await until(lambda: bus.health() is not None)
        assert "everything on CMD" in str(bus.health())
        assert "CMD/everything" in str(await bus.missing())
        await bus.publish(OpenAccount(tenant="t1"), id="later")
        await operator.migrate([WISHES])
        await until(lambda: seen.ids == ["later"])
        assert bus.health() is None


async def test_a_client_closed_for_good_is_opened_again(server: NatsServer) -> None:
    seen = Seen()
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        await bus.subscribe([Subscription(OpenAccount, seen)])
        await bus._connection._client.close()  # what nats-py does by itself on some errors of the server
        await until(lambda: bus.connected)
        await bus.publish(OpenAccount(tenant="t1"), id="after")
        await until(lambda: seen.ids == ["after"])


async def test_lost_answers_are_noticed_and_cured(server: NatsServer) -> None:
    async with Bus.open(server.url, WISHES, settings=QUICK) as bus:
        await bus.publish(OpenAccount(tenant="t1"), id="before")
        client = bus._connection._client
        mux = next(sub for sub in client._subs.values() if sub.subject.startswith("_INBOX_everything."))
        mux._wait_for_msgs_task.cancel()  # nats.py #667: requests are sent, their answers are never seen
        assert await asyncio.wait_for(bus.publish(OpenAccount(tenant="t1"), id="after"), 15) == 2


async def test_no_server_and_a_wrong_key_are_told_apart(server: NatsServer) -> None:
    with pytest.raises(BusUnavailable, match=r"within 0\.5 s"):
        async with Bus.open("nats://127.0.0.1:1", WISHES, timeout_s=0.5):
            pass
    server.stop()
    server.authorization = 'authorization { users = [ { user: "someone", password: "else" } ] }'
    server.start()
    with pytest.raises(Refused, match="does not accept everything"):
        async with Bus.open(server.url, WISHES, timeout_s=5):
            pass


def entry(number: int) -> ThreadEntry:
    return ThreadEntry(id=f"e{number}", type=ThreadEntryType.TEXT_DELTA, thread_id="thd_1", at_ms=number)


async def test_a_subscription_is_told_of_its_dead_message_until_it_has_taken_note(
    opened: Callable[..., Awaitable[Bus]],
) -> None:
    bus = await opened(WISHES)
    told: list[tuple[str, str]] = []

    async def refuse(_: Delivery[Any]) -> None:
        raise Conflict("never")

    async def note(delivery: Delivery[Any]) -> None:
        told.append((delivery.id, delivery.message.tenant))
        if len(told) == 1:
            raise DependencyUnavailable("not now")

    await bus.subscribe([Subscription(OpenAccount, refuse, on_dead=note)])
    await bus.publish(OpenAccount(tenant="t1"), id="bad")
    await until(lambda: told == [("bad", "t1")] * 2)


@pytest.mark.parametrize("within_s", [0.0, 0.001, 0.01, 0.3])
async def test_an_open_that_failed_or_was_given_up_leaves_nothing_that_goes_on_connecting(
    own_nats: NatsServer, within_s: float
) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(BusUnavailable, match=f"no bus at {own_nats.url}"):
        await Connection(own_nats.url, "early").open(within_s)
    opening = asyncio.create_task(Connection(own_nats.url, "early").open())
    await asyncio.sleep(within_s)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.sleep(0.1)
    assert not asyncio.all_tasks() - before


async def test_an_open_that_is_given_up_at_its_very_end_leaves_no_client(server: NatsServer) -> None:
    connection = Connection(server.url, "late")
    opening = asyncio.create_task(connection.open())
    while not connection.connected:  # noqa: ASYNC110 - the very turn of the loop matters
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not connection.connected
