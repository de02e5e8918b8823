"""The bus wrapper beside plain nats-py and raw atomic batches, in one run on one server with every write synced.

    python tests/bench/bench_bus.py [--messages 20000] [--rounds 5]

Prints one JSON object: medians in messages per second and the ratios. Bounds: consume_ratio >= 2, relay_ratio >= 0.7.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats  # noqa: TID251 - the yardstick is nats-py itself
from hatchery_common.bus import Bus, Delivery, OutgoingRow, Subscription
from hatchery_common.bus.replay import Operator
from hatchery_common.contracts.billing import AccountOpened, LedgerPosted
from hatchery_common.ids import uuid7
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.testing.nats import NatsServer


@asynccontextmanager
async def _open(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


SERVICE = Service("bench", _open, consumes=(LedgerPosted,), produces=(LedgerPosted, AccountOpened))
KEYS = 200


def rows(bus: Bus, count: int, mark: str) -> list[OutgoingRow]:
    """Outbox rows of about 250 bytes for many tenants."""
    made = []
    for number in range(count):
        message = LedgerPosted(
            tenant=f"t{number % KEYS}",
            transaction_id=f"txn-{number:012d}",
            transaction_kind="model_usage",
            amount_micro=-number,
            balance_micro=10**9 - number,
            version=number,
            reference="usage/" + "x" * 60,
            posted_at_ms=1_700_000_000_000,
        )
        encoded = bus.encode(message, id=f"{mark}-{number}")
        made.append(OutgoingRow(f"{mark}-{number}", encoded.subject, encoded.headers, encoded.body))
    return made


async def fetch_rate(url: str, _: Operator, count: int) -> float:
    """nats-py: fetch(100), then ack each."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    name = f"fetch-{uuid7().hex[:8]}"
    await jetstream.add_consumer("EVT", durable_name=name, ack_policy="explicit", filter_subject="evt.>")
    pulling = await jetstream.pull_subscribe_bind(name, "EVT")
    done = 0
    began = time.perf_counter()
    while done < count:
        for message in await pulling.fetch(100, timeout=5):
            await message.ack()
            done += 1
    await client.flush()
    rate = count / (time.perf_counter() - began)
    await jetstream.delete_consumer("EVT", name)
    await client.close()
    return rate


async def wrapper_rate(url: str, operator: Operator, count: int) -> float:
    """Our consumer: decoded, checked, in lanes, acknowledged."""
    done = asyncio.Event()
    seen = 0

    async def handle(_: Delivery[Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    await operator.jetstream.call("CONSUMER.DELETE.EVT.bench")
    await operator.migrate([SERVICE])
    async with Bus.open(url, SERVICE) as bus:
        began = time.perf_counter()
        consumption = await bus.subscribe([Subscription(LedgerPosted, handle)])
        await asyncio.wait_for(done.wait(), 120)
        await bus._connection.flush()
        rate = count / (time.perf_counter() - began)
        await consumption.stop()
    return rate


async def raw_batch_rate(url: str, made: list[OutgoingRow]) -> float:
    """Atomic batches of 100 by hand: the limit for a relay."""
    client = await nats.connect(url)
    began = time.perf_counter()
    for start in range(0, len(made), 100):
        chunk = made[start : start + 100]
        batch = uuid7().hex
        for number, row in enumerate(chunk[:-1], 1):
            headers = {"Nats-Msg-Id": row.id, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            await client.publish(row.subject, row.payload, headers={**row.headers, **headers})
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(chunk)), "Nats-Batch-Commit": "1"}
        last = chunk[-1]
        answer = await client.request(
            last.subject, last.payload, headers={**last.headers, **headers, "Nats-Msg-Id": last.id}, timeout=10
        )
        assert "error" not in json.loads(answer.data), answer.data
    rate = len(made) / (time.perf_counter() - began)
    await client.close()
    return rate


async def relay_rate(bus: Bus, made: list[OutgoingRow]) -> float:
    """What the outbox relay calls, 500 rows at a time."""
    began = time.perf_counter()
    for start in range(0, len(made), 500):
        await bus.publish_rows(made[start : start + 500])
    return len(made) / (time.perf_counter() - began)


async def run(messages: int, rounds: int) -> dict[str, Any]:
    """All four, interleaved, so that a slow spell of the machine meets each."""
    figures: dict[str, list[float]] = {"fetch": [], "wrapper": [], "raw_batches": [], "relay": []}
    cpu: dict[str, list[float]] = {"fetch": [], "wrapper": []}
    with tempfile.TemporaryDirectory() as directory:
        server = NatsServer(Path(directory)).start()
        try:
            async with Operator.open(server.url) as operator, Bus.open(server.url, SERVICE) as bus:
                await operator.migrate([SERVICE])
                per_round = max(500, messages // rounds // 2)
                for number in range(rounds):
                    figures["raw_batches"].append(await raw_batch_rate(server.url, rows(bus, per_round, f"a{number}")))
                    figures["relay"].append(await relay_rate(bus, rows(bus, per_round, f"b{number}")))
                stored = await bus.last_sequence("EVT")
                for _ in range(rounds):
                    for name, measured in (("fetch", fetch_rate), ("wrapper", wrapper_rate)):
                        began = time.process_time()
                        figures[name].append(await measured(server.url, operator, stored))
                        cpu[name].append((time.process_time() - began) / stored * 1e6)
        finally:
            server.stop()
    median = {name: round(statistics.median(values)) for name, values in figures.items()}
    return {
        "messages": messages,
        "rounds": rounds,
        "per_second": median,
        "cpu_us_per_message": {name: round(statistics.median(values), 1) for name, values in cpu.items()},
        "consume_ratio": round(
            statistics.median(w / f for w, f in zip(figures["wrapper"], figures["fetch"], strict=True)), 2
        ),
        "relay_ratio": round(
            statistics.median(r / b for r, b in zip(figures["relay"], figures["raw_batches"], strict=True)), 2
        ),
    }


def main() -> int:
    """Print the figures; exit 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    gc.freeze()  # as the runner does: what the imports made is not looked through again and again
    found = asyncio.run(run(chosen.messages, chosen.rounds))
    print(json.dumps(found, indent=2))
    return 0 if found["consume_ratio"] >= 2 and found["relay_ratio"] >= 0.7 else 1


if __name__ == "__main__":
    sys.exit(main())
