"""Rebuild equals the live ledger whatever happened on the way, and finds what was changed; verify finds a bad day sound."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.sql import LEDGER_TABLES
from hatchery_billing.audit import rebuild, verify
from hatchery_common.bus.delivery import Delivery
from hatchery_common.database import Database

NOW = 1_793_600_000_000
TENANTS = ("ta", "tb", "tc")
Deliveries = list[Delivery[Any]]


async def on_stream(deliveries: Sequence[Delivery[Any]]) -> AsyncIterator[Delivery[Any]]:
    for delivery in sorted(deliveries, key=lambda each: each.sequence):
        yield delivery


def traffic(sample: Any, chance: random.Random, count: int = 60) -> Deliveries:
    """Machine totals, calls in every state, repetitions under new ids, and events that cannot be charged."""
    seconds = dict.fromkeys(TENANTS, 0)
    deliveries: Deliveries = []
    for number in range(count):
        tenant = chance.choice(TENANTS)
        seconds[tenant] += chance.randint(0, 90)
        call = f"c{number // 3}"
        owner = TENANTS[number // 3 % 3]
        event = chance.choice(
            [
                sample.metered(seconds[tenant], tenant=tenant, boot=chance.choice(["b1", "b2"])),
                sample.metered(seconds[tenant], tenant=tenant, size="free", boot="b3"),
                sample.opened(call, tenant=owner),
                sample.recorded(call, tokens=1_000 + number // 3, tenant=owner),
                sample.unknown(call, tenant=owner),
                sample.recorded(f"x{number}", model="unheard-of", tenant=owner),
                sample.recorded(f"y{number}", cached_tokens=10**6, tenant=owner),
            ]
        )
        deliveries.append(sample.delivery(event))
    return deliveries


async def history(ledger: SqlLedger, sample: Any, grants: Any, seed: int = 1) -> Deliveries:
    """Apply a stream as a bad day would: in uneven batches, some late, some again."""
    chance = random.Random(seed)
    deliveries = [*traffic(sample, chance, 20), *await grants(), *traffic(sample, chance)]
    arriving = sorted(deliveries, key=lambda each: each.sequence + chance.choice([0, 0, 0, 0, 15]))
    while arriving:
        size = chance.randint(1, 12)
        batch, arriving = arriving[:size], arriving[size:]
        await ledger.apply(batch, posted_at_ms=NOW)
        if chance.random() < 0.3:
            await ledger.apply([*batch, *chance.sample(deliveries, 3)], posted_at_ms=NOW)
    return deliveries


async def dump(database: Database) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    async with database.connect() as connection:
        for table in LEDGER_TABLES:
            found = await connection.execute(sa.text(f"SELECT to_jsonb(t)::text FROM {table.name} t ORDER BY 1"))
            rows[table.name] = list(found.scalars())
    return rows


@pytest.mark.parametrize("seed", range(6))
async def test_a_bad_day_verifies_and_rebuilds_equal(
    ledger: SqlLedger, database: Database, sample: Any, grants: Any, seed: int
):
    deliveries = await history(ledger, sample, grants, seed)
    verified = await verify(database.url)
    assert [finding for finding in verified.findings if not finding.is_warning] == []
    again = deliveries[3]._replace(sequence=sample.sequence + 1)  # the relay published one twice
    rebuilt = await rebuild(database.url, on_stream([*deliveries, again]))
    assert rebuilt.findings == ()
    assert rebuilt.replayed == len(deliveries)
    assert (rebuilt.transactions, rebuilt.pending) == (verified.transactions, 0)


async def test_the_size_of_batches_changes_nothing(
    ledger: SqlLedger, database: Database, sample: Any, postgres: Any, prices: Any
):
    deliveries = traffic(sample, random.Random(5), 120)
    dumps: list[dict[str, list[str]]] = []
    for size in (1, 7, 200):
        async with database.engine.begin() as connection:
            for name in ("transactions", "postings", "prices"):
                await connection.execute(sa.text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
            await connection.execute(sa.text(f"TRUNCATE {', '.join(table.name for table in LEDGER_TABLES)}"))
        for start in range(0, len(deliveries), size):
            await ledger.apply(deliveries[start : start + size], posted_at_ms=NOW)
        dumps.append(await dump(database))
    assert dumps[0] == dumps[1] == dumps[2]
    assert len(dumps[0]["transactions"]) > 30


async def test_an_empty_ledger_is_sound(database: Database):
    assert (await verify(database.url)).findings == ()
    assert (await rebuild(database.url, on_stream([]))).ok


async def test_events_beyond_the_cursor_are_pending_and_skipped_ones_are_found(
    ledger: SqlLedger, database: Database, sample: Any
):
    first, skipped, third, beyond = [sample.delivery(sample.recorded(f"c{n}")) for n in range(4)]
    await ledger.apply([first], posted_at_ms=NOW)
    await ledger.apply([third], posted_at_ms=NOW)
    report = await rebuild(database.url, on_stream([first, skipped, third, beyond]))
    assert [finding.code for finding in report.findings] == ["event_not_applied"]
    assert report.pending == 1
    truncated = await rebuild(database.url, on_stream([third]))
    assert "event_not_on_stream" in {finding.code for finding in truncated.findings}


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 'credits:ta'", "accounts_only_live"),
        ("DELETE FROM postings WHERE transaction = 1", "postings_only_rebuilt"),
        ("UPDATE transactions SET description = 'gift'", "transactions_only_live"),
        ("UPDATE buckets SET remaining = 1", "buckets_only_live"),
        ("UPDATE calls SET model = 'small' WHERE call_id = 'c1'", "calls_only_live"),
        ("UPDATE boots SET gap_seconds = 9", "boots_only_live"),
        ("DELETE FROM events WHERE position = 5", "event_not_applied"),
    ],
)
async def test_rebuild_finds(
    ledger: SqlLedger, database: Database, sample: Any, grants: Any, statement: str, code: str
):
    deliveries = [
        *await grants(),
        *(sample.delivery(each) for each in (sample.metered(60), sample.recorded("c1"), sample.recorded("c2"))),
    ]
    await ledger.apply(deliveries, posted_at_ms=NOW)
    assert (await rebuild(database.url, on_stream(deliveries))).ok
    async with database.engine.begin() as connection:
        for name in ("transactions", "postings"):
            await connection.execute(sa.text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
        await connection.execute(sa.text(statement))
    assert code in {finding.code for finding in (await rebuild(database.url, on_stream(deliveries))).findings}


CHILD = """
import asyncio, sys
from datetime import UTC, datetime
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.settings import BillingSettings
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.billing import EVENTS, CreditsGranted
from hatchery_common.database import Database
async def main():
    ledger = SqlLedger(Database(sys.argv[1], "billing", produces=frozenset(EVENTS)), Prices(BillingSettings()))
    grant = CreditsGranted(tenant="ta", grant="monthly", period="2026-11", amount_micro=5, granted_at_ms=0)
    await ledger.apply([Delivery(grant, "evt_1", "", "ta", "", "", datetime.now(UTC), "EVT", 1)], posted_at_ms=0)
asyncio.run(main())
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("point", "posted"),
    [("billing.batch_before_commit", 0), ("billing.before_commit", 0), ("billing.after_commit_before_ack", 1)],
)
async def test_a_kill_loses_and_doubles_nothing(
    ledger: SqlLedger, database: Database, sample: Any, point: str, posted: int
):
    def run() -> int:
        environment = {**os.environ, "HATCHERY_FAILPOINTS": point}
        return subprocess.run([sys.executable, "-c", CHILD, database.url], env=environment, timeout=60).returncode

    assert run() == -signal.SIGKILL
    assert (await verify(database.url)).transactions == posted
    grant = sample.grant(amount=5, granted_at_ms=0)
    await ledger.apply([sample.delivery(grant, event_id="evt_1", sequence=1)], posted_at_ms=0)
    report = await verify(database.url)
    assert (report.transactions, report.events) == (1, 1)
    async with database.connect() as connection:
        assert await connection.scalar(sa.text("SELECT count(*) FROM outbox")) == 1
