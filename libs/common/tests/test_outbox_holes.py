"""A stream was lost: what it lacks is published again, and no older route comes to lie upon a newer one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence

import pytest
from hatchery_common.bus import Bus
from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.database import Database
from hatchery_common.log import get_logger
from hatchery_common.outbox import Relay
from hatchery_common.owner import Ownership
from hatchery_common.testing.everything import QUICK, until_async
from hatchery_common.testing.example import service
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import scalar


class Bucket:
    """A stream of routes that can be lost; `gate` holds up a publication until a test says so."""

    def __init__(self) -> None:
        self.rows: list[OutgoingRow] = []
        self.last, self.created = 9, "first"
        self.asked, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    def lose(self) -> None:
        """It is made anew, empty."""
        self.rows.clear()
        self.last, self.created = 0, "second"
        self.asked.clear()

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        self.asked.set()
        await self.gate.wait()
        self.rows += rows
        self.last += len(rows)
        return list(range(self.last - len(rows) + 1, self.last + 1))

    async def stream_state(self, stream: str) -> StreamState:
        return StreamState(stream, self.created, 0, 0, 1, self.last, 0)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        return

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        return

    @property
    def versions(self) -> list[int]:
        return [Route.model_validate_json(row.payload).route_version for row in self.rows]


async def put(database: Database, version: int) -> None:
    route = Route(instance_id="ins_a", tenant="t", state=RouteState.RUNNING, route_version=version, changed_at_ms=0)
    async with database.unit_of_work() as work:
        await work.put_route(route)


async def published(database: Database, bucket: Bucket, *versions: int) -> Relay:
    """A relay that has published these versions of a route."""
    relay = Relay(database, bucket, get_logger("test"))
    for version in versions:
        await put(database, version)
    await relay.publish_pending()
    assert await relay.republish_holes() == 0
    return relay


async def test_only_the_newest_version_of_a_route_is_published_again(database: Database) -> None:
    bucket = Bucket()
    relay = await published(database, bucket, 1, 2, 3)
    assert bucket.versions == [1, 2, 3]
    bucket.lose()
    assert await relay.republish_holes() == 1
    await relay.publish_pending()
    assert bucket.versions == [3]


async def test_an_older_version_never_follows_a_newer_one_that_the_new_stream_has(database: Database) -> None:
    bucket = Bucket()
    relay = await published(database, bucket, 1)
    bucket.lose()
    await put(database, 2)
    await relay.publish_pending()
    await relay.republish_holes()
    await relay.publish_pending()
    assert set(bucket.versions) == {2}


async def test_a_change_during_the_repair_is_published_after_it(database: Database) -> None:
    """The relay has the newer version in hand when the older is looked for: the repair waits for its turn."""
    bucket = Bucket()
    relay = await published(database, bucket, 1)
    bucket.lose()
    bucket.gate.clear()
    await put(database, 2)
    publishing = asyncio.create_task(relay.publish_pending())
    await asyncio.wait_for(bucket.asked.wait(), 5)
    repairing = asyncio.create_task(relay.republish_holes())
    done, _ = await asyncio.wait({repairing}, timeout=0.2)
    assert not done
    bucket.gate.set()
    await asyncio.gather(publishing, repairing)
    await relay.publish_pending()
    assert set(bucket.versions) == {2}


async def test_each_term_of_an_owner_begins_with_a_look_at_the_streams(database: Database) -> None:
    """Between two terms nobody hears that the server was away."""
    bucket = Bucket()
    relay = await published(database, bucket, 1)
    bucket.lose()
    await put(database, 2)
    term = asyncio.create_task(relay.run(Ownership(2)))
    await asyncio.wait_for(bucket.asked.wait(), 5)
    term.cancel()
    await asyncio.wait([term])
    assert await scalar(database, "SELECT created FROM known_streams WHERE stream = 'KV_routes'") == "second"


async def note(database: Database, first: int, count: int) -> None:
    async with database.unit_of_work() as work:
        await work.emit_all(
            [(AccountOpened(tenant=f"t{number}", opened_at_ms=0), None) for number in range(first, first + count)]
        )


async def tenants(nats: NatsServer) -> list[str]:
    async with Operator.open(nats.url) as operator:
        return [record.subject.split(".")[1] async for record in operator.read("EVT")]


@pytest.mark.chaos
async def test_a_lost_store_is_filled_again_though_others_have_published_to_the_new_one(
    own_nats: NatsServer, database: Database
) -> None:
    """The new stream is longer than the old one was by the time that our relay looks; what it held comes all the same."""
    own_nats.start()
    async with Operator.open(own_nats.url) as operator:
        await operator.migrate([service])
    async with Bus.open(own_nats.url, service, settings=QUICK) as bus:
        relay = Relay(database, bus, get_logger("test"))
        running = asyncio.create_task(relay.run(Ownership(1)))
        await note(database, 0, 20)

        async def all_out() -> bool:
            return await scalar(database, "SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0

        await until_async(all_out)
        own_nats.stop()
        shutil.rmtree(own_nats.directory / "store")
        await note(database, 20, 5)  # committed during the outage
        own_nats.start()
        async with Operator.open(own_nats.url) as operator:
            await operator.migrate([service])
            for number in range(40):
                await operator.jetstream.publish(f"evt.other.account.opened.other{number}", b"{}", {})

        async def complete() -> bool:
            return len([one for one in await tenants(own_nats) if one != "other"]) == 25

        await until_async(complete, 20)
        found = [one for one in await tenants(own_nats) if one != "other"]
        assert sorted(found) == sorted(f"t{number}" for number in range(25))  # each once
        old = [f"t{number}" for number in range(20)]
        assert [one for one in found if one in old] == old
        running.cancel()
        await asyncio.wait([running])
