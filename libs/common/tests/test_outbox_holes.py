"""A stream was lost: what it lacks is published again, and no older route comes to lie upon a newer one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hatchery_common.bus.jetstream import StreamState
from hatchery_common.bus.publisher import OutgoingRow
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.database import Database
from hatchery_common.log import get_logger
from hatchery_common.outbox import Relay


class Bucket:
    """A stream of routes that can be lost; `before` holds up a publication until a test says so."""

    def __init__(self, last: int = 0) -> None:
        self.rows: list[OutgoingRow] = []
        self.last = last
        self.asked, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def publish_rows(self, rows: Sequence[OutgoingRow]) -> list[int]:
        self.asked.set()
        await self.gate.wait()
        self.rows += rows
        self.last += len(rows)
        return list(range(self.last - len(rows) + 1, self.last + 1))

    async def stream_state(self, stream: str) -> StreamState:
        return StreamState(stream, "", 0, 0, 1, self.last, 0)

    @property
    def versions(self) -> list[int]:
        return [Route.model_validate_json(row.payload).route_version for row in self.rows]


async def put(database: Database, version: int) -> None:
    route = Route(instance_id="ins_a", tenant="t", state=RouteState.RUNNING, route_version=version, changed_at_ms=0)
    async with database.unit_of_work() as work:
        await work.put_route(route)


def lose(relay: Relay) -> Bucket:
    """The relay goes on with an empty bucket."""
    fresh = Bucket()
    relay._publisher = fresh
    return fresh


async def test_only_the_newest_version_of_a_route_is_published_again(database: Database) -> None:
    bucket = Bucket(last=9)
    relay = Relay(database, bucket, get_logger("test"))
    for version in (1, 2, 3):
        await put(database, version)
    await relay.publish_pending()
    assert bucket.versions == [1, 2, 3]
    fresh = lose(relay)
    assert await relay.republish_holes() == 1
    await relay.publish_pending()
    assert fresh.versions == [3]


async def test_an_older_version_never_follows_a_newer_one_that_the_new_stream_has(database: Database) -> None:
    bucket = Bucket(last=9)
    relay = Relay(database, bucket, get_logger("test"))
    await put(database, 1)
    await relay.publish_pending()
    fresh = lose(relay)
    await put(database, 2)
    await relay.publish_pending()
    assert await relay.republish_holes() == 0
    await relay.publish_pending()
    assert fresh.versions == [2]


async def test_a_change_during_the_repair_is_published_after_it(database: Database) -> None:
    """The relay has the newer version in hand when the older is looked for: the repair waits for its turn."""
    bucket = Bucket(last=9)
    relay = Relay(database, bucket, get_logger("test"))
    await put(database, 1)
    await relay.publish_pending()
    fresh = lose(relay)
    fresh.gate.clear()
    await put(database, 2)
    publishing = asyncio.create_task(relay.publish_pending())
    await asyncio.wait_for(fresh.asked.wait(), 5)
    repairing = asyncio.create_task(relay.republish_holes())
    done, _ = await asyncio.wait({repairing}, timeout=0.2)
    assert not done
    fresh.gate.set()
    await asyncio.gather(publishing, repairing)
    await relay.publish_pending()
    assert fresh.versions == [2]
