"""The outbox relay on a real Postgres (fsync on) and a real NATS (every write synced) beside raw atomic batches of 100.

    python tests/bench/bench_relay.py [--json] [--pairs 5] [--messages 5000]

The relay reads rows, publishes and marks them; the raw side only publishes rows that it holds in memory. Bound: ratio ≥ 0.7.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_bus import SERVICE, raw_batch_rate, rows
from figures import Figure, main, median, spread
from hatchery_common.bus import Bus, OutgoingRow
from hatchery_common.bus.replay import Operator
from hatchery_common.database import Database, outbox
from hatchery_common.log import get_logger
from hatchery_common.outbox import Relay
from hatchery_common.testing import example
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import fresh_database, local_postgres

_AT_ONCE = 500


async def relay_rate(database: Database, bus: Bus, made: Sequence[OutgoingRow]) -> float:
    """Rows that are committed already; messages per second until all are published and marked."""
    queued = [
        {"event_id": row.id, "subject": row.subject, "headers": row.headers, "payload": row.payload} for row in made
    ]
    async with database.unit_of_work() as work:
        for start in range(0, len(queued), _AT_ONCE):
            await work.connection.execute(outbox.insert(), queued[start : start + _AT_ONCE])
    relay = Relay(database, bus, get_logger("bench"))
    done = 0
    began = time.perf_counter()
    while moved := await relay.publish_pending():
        done += moved
    rate = len(made) / (time.perf_counter() - began)
    assert done == len(made), f"{done} of {len(made)}"
    return rate


async def run(pairs: int, messages: int) -> list[Figure]:
    """Pairs in alternating order, after one of each that is not counted."""
    relay: list[float] = []
    raw: list[float] = []
    with local_postgres() as postgres, tempfile.TemporaryDirectory() as directory:
        postgres.stop()
        postgres.start(fsync=True)
        server = NatsServer(Path(directory)).start()
        try:
            async with (
                fresh_database(postgres.server, example.service) as databases,
                Operator.open(server.url) as operator,
                Bus.open(server.url, SERVICE) as bus,
            ):
                await operator.migrate([SERVICE])
                database = databases[example.service.name]
                await relay_rate(database, bus, rows(bus, 500, "warm"))
                await raw_batch_rate(server.url, rows(bus, 500, "cold"))
                for number in range(pairs):
                    for side in ("relay", "raw") if number % 2 else ("raw", "relay"):
                        made = rows(bus, messages, f"{side}-{number}")
                        if side == "raw":
                            raw.append(await raw_batch_rate(server.url, made))
                        else:
                            relay.append(await relay_rate(database, bus, made))
        finally:
            server.stop()
    ratios = [ours / theirs for ours, theirs in zip(relay, raw, strict=True)]
    return [
        Figure("relay ÷ raw batches", median(ratios), "", at_least=0.7, detail=f"{pairs} pairs, {spread(ratios)}"),
        Figure("relay", median(relay, 0), "msg/s", detail=spread(relay, 0)),
        Figure("raw atomic batches of 100", median(raw, 0), "msg/s", detail=spread(raw, 0)),
    ]


def measure(chosen: argparse.Namespace) -> Sequence[Figure]:
    """All pairs in one event loop."""
    gc.freeze()  # as the runner does: what the imports made is not looked through again and again
    return asyncio.run(run(chosen.pairs, chosen.messages))


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, pairs=5, messages=5000))
