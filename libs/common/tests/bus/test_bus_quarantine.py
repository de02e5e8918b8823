"""A message that kills its process is found among those that died with it; they are handled, each once."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hatchery_common.bus import Bus, Delivery, Subscription, Trial
from hatchery_common.bus import deadletter as dead
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.quarantine import LIVES
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.topology import consumer_config, durables_of
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.database import Database
from hatchery_common.errors import Conflict, DependencyUnavailable
from hatchery_common.quarantine import SqlQuarantine
from hatchery_common.testing.deadly import ACK_WAIT_S
from hatchery_common.testing.everything import QUICK, everything, until
from hatchery_common.testing.example import service
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import scalar

INNOCENT = [f"t{number}" for number in range(6)]
WISHES = everything(consumes=(OpenAccount,))


async def prepare(nats: NatsServer, *, batches: bool) -> None:
    """The messages, before a durable that sends again soon what a dead process held."""
    declared = dataclasses.replace(service, batched=(OpenAccount,)) if batches else service
    async with Operator.open(nats.url) as operator:
        await operator.migrate([declared, WISHES])
        (durable,) = durables_of(declared)
        body = {"stream_name": durable.stream, "config": consumer_config(durable, ACK_WAIT_S), "action": "update"}
        await operator.jetstream.call(f"CONSUMER.DURABLE.CREATE.{durable.stream}.{durable.name}", body)
    async with Bus.open(nats.url, WISHES, settings=QUICK) as bus:
        for tenant in (*INNOCENT[:3], "deadly", *INNOCENT[3:]):
            await bus.publish(OpenAccount(tenant=tenant), id=tenant)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["lanes", "batches"])
async def test_a_deadly_message_dies_alone(clean_nats: NatsServer, database: Database, kind: str) -> None:
    await prepare(clean_nats, batches=kind == "batches")
    lives: list[int] = []
    while not lives or lives[-1] == -signal.SIGKILL:
        assert len(lives) <= QUICK.max_deliveries + LIVES, "it is killed for ever"
        done = subprocess.run(
            [sys.executable, "-m", "hatchery_common.testing.deadly", clean_nats.url, database.url, kind],
            timeout=60,
            capture_output=True,
            check=False,
        )
        lives.append(done.returncode)
    assert lives[-1] == 0, done.stdout.decode() + done.stderr.decode()
    assert len(lives) > LIVES
    async with Operator.open(clean_nats.url) as operator:
        letters = [record async for record in operator.read("DLQ")]
    assert [(letter.id, letter.headers[dead.CODE]) for letter in letters] == [("deadly", "too_many_deliveries")]
    assert await scalar(database, "SELECT array_agg(tenant || opened ORDER BY tenant) FROM notes") == [
        f"{tenant}1" for tenant in INNOCENT
    ]
    assert await scalar(database, "SELECT outcome FROM inbox WHERE event_id = 'deadly'") == "dead"
    assert await scalar(database, "SELECT count(*) FROM quarantine") == 0


async def test_beginnings_are_counted_until_the_end(database: Database) -> None:
    rows = SqlQuarantine(database)
    assert [await rows.enter("m") for _ in range(3)] == [1, 2, 3]
    assert await rows.enter("other") == 1
    await rows.leave("m")
    await rows.leave("m")
    assert await rows.enter("m") == 1


class Memory:
    """A quarantine that is forgotten with the test; it knows how many were in it at a time, and may be away."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}
        self.most = 0
        self.is_away = False

    async def enter(self, message_id: str) -> int:
        self.begun[message_id] = self.begun.get(message_id, 0) + 1
        self.most = max(self.most, len(self.begun))
        return self.begun[message_id]

    async def leave(self, message_id: str) -> None:
        if self.is_away:
            raise DependencyUnavailable("Postgres is away")
        self.begun.pop(message_id, None)


async def test_suspects_are_handled_one_at_a_time_and_an_error_condemns_with_its_own_reason(
    clean_nats: NatsServer,
) -> None:
    memory, seen = Memory(), list[str]()

    async def handle(delivery: Delivery[Any]) -> None:
        seen.append(delivery.id)
        if delivery.id == "t3":
            raise Conflict("three never")

    async with Operator.open(clean_nats.url) as operator:
        await operator.migrate([WISHES])
        settings = dataclasses.replace(QUICK, max_deliveries=0)  # all are suspects from their first delivery on
        async with Bus.open(clean_nats.url, WISHES, settings=settings) as bus:
            for tenant in INNOCENT:
                await bus.publish(OpenAccount(tenant=tenant), id=tenant)
            await bus.subscribe([Subscription(OpenAccount, handle)], trial=Trial(memory))
            await until(lambda: len(seen) == len(INNOCENT) and not memory.begun)
        letters = [record async for record in operator.read("DLQ")]
    assert sorted(seen) == INNOCENT
    assert memory.most == 1
    assert [(letter.id, letter.headers[dead.CODE]) for letter in letters] == [("t3", "conflict")]


async def test_a_dependency_that_is_away_condemns_nobody(clean_nats: NatsServer) -> None:
    """It is the quarantine's own, too: that an attempt has ended is written once it is back."""
    memory, attempts = Memory(), list[int]()

    def come_back() -> None:
        memory.is_away = False

    async def handle(delivery: Delivery[Any]) -> None:
        attempts.append(delivery.deliveries)
        memory.is_away = len(attempts) <= 2 * LIVES
        if memory.is_away:
            asyncio.get_running_loop().call_later(0.01, come_back)
            raise DependencyUnavailable("Postgres is away")

    async with Operator.open(clean_nats.url) as operator:
        await operator.migrate([WISHES])
        async with Bus.open(clean_nats.url, WISHES, settings=dataclasses.replace(QUICK, max_deliveries=0)) as bus:
            await bus.publish(OpenAccount(tenant="t1"))
            await bus.subscribe([Subscription(OpenAccount, handle)], trial=Trial(memory))
            await until(lambda: len(attempts) == 2 * LIVES + 1 and not memory.begun)
        assert [record async for record in operator.read("DLQ")] == []


async def test_suspects_that_wait_hold_nobody_up(opened: Callable[..., Awaitable[Bus]], clean_nats: NatsServer) -> None:
    bus = await opened(WISHES)
    for tenant in INNOCENT:
        await bus.publish(OpenAccount(tenant=tenant), id=tenant)
    crasher, crashes = Connection(clean_nats.url, "crasher"), list[str]()
    await crasher.open()

    async def crash(raw: Any) -> None:  # what a crash leaves behind: a delivery and no acknowledgement
        crashes.append(raw.reply)
        await crasher.publish(raw.reply, b"-NAK")

    inbox = crasher.new_inbox()
    await crasher.subscribe(inbox, crash)
    for number in range(1, QUICK.max_deliveries + 1):
        await crasher.publish("$JS.API.CONSUMER.MSG.NEXT.CMD.everything", b'{"batch":6}', reply=inbox)
        await until(lambda number=number: len(crashes) == number * len(INNOCENT))
    await crasher.close()
    seen, release = list[str](), asyncio.Event()

    async def handle(delivery: Delivery[Any]) -> None:
        seen.append(delivery.id)
        if delivery.id != "fresh":
            await release.wait()

    settings = dataclasses.replace(QUICK, concurrency=2)
    async with Bus.open(clean_nats.url, WISHES, settings=settings) as other:
        await other.subscribe([Subscription(OpenAccount, handle)], trial=Trial(Memory()))
        await until(lambda: len(seen) == 1)
        await other.publish(OpenAccount(tenant="fresh"), id="fresh")
        await until(lambda: "fresh" in seen, 3)
        assert len(seen) == 2, "one suspect at a time"
        release.set()
        await until(lambda: sorted(seen) == sorted([*INNOCENT, "fresh"]))


async def test_a_message_that_is_sent_again_while_we_have_it_is_not_counted(
    opened: Callable[..., Awaitable[Bus]], operator: Operator
) -> None:
    """As after a frozen server or a long disconnection: the server counts a delivery, though nothing was tried."""
    bus = await opened(WISHES)
    began, release = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    async def handle(delivery: Delivery[Any]) -> None:
        attempts.append(delivery.deliveries)
        began.set()
        await release.wait()
        if len(attempts) == 1:
            raise DependencyUnavailable("away")

    await bus.subscribe([Subscription(OpenAccount, handle)])
    await bus.publish(OpenAccount(tenant="t1"))
    await began.wait()
    (held,) = bus._consumptions[0]._consumers[0].held()
    for _ in range(QUICK.max_deliveries + 1):
        reply = held.raw.reply
        await bus._connection.publish(reply, b"-NAK")
        await until(lambda reply=reply: held.raw.reply != reply)
    release.set()
    await until(lambda: len(attempts) == 2)
    assert attempts == [1, 1]
    assert [record async for record in operator.read("DLQ")] == []
