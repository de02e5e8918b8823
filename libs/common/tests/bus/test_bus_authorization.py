"""Each service's nkey user may do what its declaration says, and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hatchery_common.bus import Bus, BusUnavailable, Delivery, OutgoingRow, Subscription, encode_route
from hatchery_common.bus.authorization import ADMIN, forbidden_probe, render, rights_of
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.nkeys import public_of, seed_of
from hatchery_common.bus.probe import probe_rights
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType
from hatchery_common.errors import Conflict, Refused, SetupError
from hatchery_common.service import Parts, RpcHandler, Service, ServiceContext
from hatchery_common.testing.everything import DOUBLE, QUICK, Number, everything, until
from hatchery_common.testing.nats import NatsServer


@asynccontextmanager
async def _open(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


WORKER = everything(batched=(AccountOpened,), reads_routes=True, reads_threads=True)
ASKER = Service("asker", _open, produces=(OpenAccount,), calls=(DOUBLE,), reads_routes=True, reads_threads=True)
SEEDS = {name: seed_of(os.urandom(32)) for name in (ADMIN, WORKER.name, ASKER.name)}
OpenAs = Callable[[Service], Awaitable[Bus]]


@pytest.fixture
async def server(own_nats: NatsServer) -> NatsServer:
    own_nats.authorization = render([WORKER, ASKER], {name: public_of(seed) for name, seed in SEEDS.items()})
    own_nats.start()
    async with Operator.open(own_nats.url, seed=SEEDS[ADMIN]) as operator:
        await operator.migrate([WORKER, ASKER])
    return own_nats


@pytest.fixture
async def open_as(server: NatsServer) -> AsyncGenerator[OpenAs]:
    contexts: list[Any] = []

    async def open_bus(service: Service) -> Bus:
        context = Bus.open(server.url, service, seed=SEEDS[service.name], settings=QUICK)
        contexts.append(context)
        return await context.__aenter__()

    yield open_bus
    for context in contexts:
        await context.__aexit__(None, None, None)


def a_route_and_three_events(worker: Bus) -> list[OutgoingRow]:
    put = encode_route(
        Route(instance_id="ins_1", tenant="t1", state=RouteState.RUNNING, route_version=1, changed_at_ms=0)
    )
    rows = [OutgoingRow("r", put.subject, put.headers, put.body)]
    for number in range(3):
        row = worker.encode(AccountOpened(tenant="t1", opened_at_ms=number), id=f"row-{number}")
        rows.append(OutgoingRow(f"row-{number}", row.subject, row.headers, row.body))
    return rows


async def test_declared_work_needs_no_more_rights(server: NatsServer, open_as: OpenAs) -> None:
    worker, asker = await open_as(WORKER), await open_as(ASKER)
    seen: list[str] = []

    async def open_account(delivery: Delivery[Any]) -> None:
        if delivery.tenant == "bad":
            raise Conflict("no")
        seen.append(delivery.id)

    async def double(request: Number) -> Number:
        return Number(n=2 * request.n)

    await worker.subscribe([Subscription(OpenAccount, open_account)])
    await worker.serve([RpcHandler(DOUBLE, double)])
    await asker.publish(OpenAccount(tenant="bad"))
    await asker.publish(OpenAccount(tenant="t1"), id="wish")
    await until(lambda: seen == ["wish"])
    assert await asker.call(DOUBLE, Number(n=2)) == Number(n=4)
    heard: list[Route] = []
    await asker.routes.follow(heard.append)
    await worker.publish_rows(a_route_and_three_events(worker))
    assert list(await asker.routes.snapshot()) == ["ins_1"]
    entries = [ThreadEntry(id=f"e{n}", type=ThreadEntryType.RUN_QUEUED, thread_id="thd_1", at_ms=n) for n in range(2)]
    await worker.threads.append("t1", "thd_1", entries, expected_last=0)
    assert [found.entry async for found in asker.threads.read("t1", "thd_1")] == entries
    follower = asker.threads.follow("t1", "thd_1", after=2)
    more = ThreadEntry(id="e9", type=ThreadEntryType.RUN_QUEUED, thread_id="thd_1", at_ms=9)
    following = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0.05)
    await worker.threads.append("t1", "thd_1", [more], expected_last=2)
    assert getattr(await asyncio.wait_for(following, 3), "entry", None) == more
    await follower.aclose()
    async with Operator.open(server.url, seed=SEEDS[ADMIN]) as operator:
        assert [letter.subject async for letter in operator.read("DLQ")] == ["dlq.cmd.bad.account.open.bad"]
    for bus in (worker, asker):
        assert await bus.missing() is None
        assert bus.health() is None
    assert await worker.lag() == {"CMD/everything": 0, "EVT/everything-batch": 3}
    assert await worker.last_sequence("EVT") == 3


@pytest.mark.parametrize(
    "subject",
    [
        "evt.t1.account.opened.t1",
        "cmd.t1.instance.delete.ins_1",
        "thr.t1.thd_1",
        "$KV.routes.ins_1",
        "dlq.cmd.t1.account.open.t1",
        "$JS.API.STREAM.DELETE.EVT",
        "$JS.API.STREAM.PURGE.CMD",
        "$JS.API.CONSUMER.MSG.NEXT.CMD.everything",
        "$JS.API.CONSUMER.DELETE.CMD.everything",
        "$JS.API.CONSUMER.CREATE.CMD",
        "$JS.API.DIRECT.GET.EVT",
        "$JS.ACK.CMD.everything.1.1.1.1.0",
        "_INBOX_everything.x",
        forbidden_probe(ASKER),
    ],
)
async def test_what_is_not_declared_is_forbidden_by_the_server_and_named(open_as: OpenAs, subject: str) -> None:
    asker = await open_as(ASKER)
    with pytest.raises(BusUnavailable):
        await asker._connection.request(subject, b"", timeout_s=0.3)
    assert "permissions violation for publish" in str(asker.health())
    assert subject.lower() in str(asker.health()).lower()


@pytest.mark.parametrize("subject", ["evt.>", "cmd.>", ">", "_INBOX_everything.>", "rpc.>", "$JS.EVENT.>"])
async def test_no_service_listens_where_it_should_not(open_as: OpenAs, subject: str) -> None:
    asker = await open_as(ASKER)

    async def receive(_: Any) -> None:
        return

    await asker._connection.subscribe(subject, receive)
    await until(lambda: asker.health() is not None, 2)
    assert "subscription" in str(asker.health())


async def test_an_answer_of_an_earlier_session_is_not_sent_and_no_missing_right(
    server: NatsServer, open_as: OpenAs
) -> None:
    """The server forgets with a connection whom it may answer; the asker's request has failed by then."""
    worker, asker = await open_as(WORKER), await open_as(ASKER)
    asked, restarted = asyncio.Event(), asyncio.Event()
    answered: list[int] = []

    async def slowly(request: Number) -> Number:
        asked.set()
        await restarted.wait()
        answered.append(request.n)
        return Number(n=2 * request.n)

    await worker.serve([RpcHandler(DOUBLE, slowly)])
    first = asyncio.ensure_future(asker.call(DOUBLE, Number(n=1), timeout_ms=500))
    await asyncio.wait_for(asked.wait(), 5)
    server.kill()
    server.start()
    with pytest.raises(BusUnavailable):
        await first
    await until(lambda: worker.connected and asker.connected)
    restarted.set()
    await until(lambda: answered == [1])
    await worker._connection.flush()
    assert worker.health() is None
    assert worker._connection.violations == 0
    assert await asker.call(DOUBLE, Number(n=2)) == Number(n=4)


async def test_strangers_and_wrong_keys_are_refused(server: NatsServer) -> None:
    for seed in (None, seed_of(os.urandom(32))):
        with pytest.raises(Refused):
            await Connection(server.url, "stranger", seed).open(3)


async def test_doctor_proves_each_right_without_storing_anything(server: NatsServer) -> None:
    for service in (WORKER, ASKER):
        findings = await probe_rights(server.url, service, SEEDS[service.name])
        assert [finding for finding in findings if not finding.ok] == []
        assert {finding.subject for finding in findings} >= {forbidden_probe(service)}
    async with Operator.open(server.url, seed=SEEDS[ADMIN]) as operator:
        assert sum(state.messages for state in await operator.streams()) == 0


async def test_doctor_disturbs_nobody_who_listens(server: NatsServer) -> None:
    heard: list[str] = []

    async def hear(raw: Any) -> None:
        heard.append(raw.subject)

    listener = Connection(server.url, ADMIN, SEEDS[ADMIN])
    await listener.open(5)
    await listener.subscribe("$KV.routes.>", hear)
    await listener.flush()
    assert "$KV.routes.>" in rights_of(WORKER).publish
    await probe_rights(server.url, WORKER, SEEDS[WORKER.name])
    await listener.flush()
    await listener.close()
    assert heard == []


async def test_doctor_finds_a_missing_right_and_one_too_many(own_nats: NatsServer) -> None:
    narrow = Service("asker", _open, calls=(DOUBLE,))
    own_nats.authorization = render([narrow], {name: public_of(seed) for name, seed in SEEDS.items()})
    own_nats.start()
    async with Operator.open(own_nats.url, seed=SEEDS[ADMIN]) as operator:
        await operator.migrate([ASKER])
    findings = await probe_rights(own_nats.url, ASKER, SEEDS[ASKER.name])
    assert "cmd._.account.open._probe" in {finding.subject for finding in findings if not finding.ok}
    own_nats.stop()
    own_nats.authorization = ""
    own_nats.start()
    findings = await probe_rights(own_nats.url, ASKER, None)
    assert {finding.subject for finding in findings if not finding.ok} == {forbidden_probe(ASKER)}


def test_rights_name_no_other_services_durables() -> None:
    rights = rights_of(WORKER)
    assert "$JS.API.CONSUMER.MSG.NEXT.EVT.everything-batch" in rights.publish
    assert "$JS.ACK.CMD.everything.>" in rights.publish
    assert not [subject for subject in rights.publish if subject in (">", "$JS.API.>", "evt.>", "cmd.>")]
    assert rights.subscribe == ("$KV.routes.>", "_INBOX_everything.>", "live.>", "rpc.everything.double.v1")


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(SetupError, match="bus-admin"):
        render([ASKER], {})


def test_a_seed_is_the_same_for_the_same_secret() -> None:
    secret = bytes(range(32))
    assert seed_of(secret) == seed_of(secret)
    assert seed_of(secret).startswith("SU")
    assert public_of(seed_of(secret)).startswith("U")
