"""Verify finds each kind of corruption; rebuild equals the live ledger whatever happened on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.sql import LEDGER_TABLES
from hatchery_billing.audit import rebuild, verify
from hatchery_billing.audit.checks import CHECKS
from hatchery_billing.ports import GrantDecision
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import CreditsGranted
from hatchery_common.database import Database

NOW = 1_793_600_000_000
TENANTS = ("ta", "tb", "tc")
Deliveries = list[Delivery[Any]]


async def on_stream(deliveries: Sequence[Delivery[Any]]) -> AsyncIterator[Delivery[Any]]:
    for delivery in sorted(deliveries, key=lambda each: each.sequence):
        yield delivery


async def open_accounts(ledger: SqlLedger) -> None:
    for tenant in TENANTS:
        message = OpenAccount(tenant=tenant)
        wish = Delivery(
            message,
            f"cmd_{tenant}",
            message.message_type(),
            tenant,
            message.subject,
            "api",
            datetime.now(UTC),
            "CMD",
            1,
        )
        await ledger.open_account(wish, opened_at_ms=NOW, grant=GrantDecision("monthly", "2026-11", 100_000, NOW))


async def grants_sent(database: Database, sample: Any) -> Deliveries:
    query = sa.text(
        "SELECT event_id, convert_from(payload, 'UTF8') FROM outbox WHERE subject LIKE 'evt.%.credits_granted.%' ORDER BY id"
    )
    async with database.connect() as connection:
        rows = (await connection.execute(query)).all()
    return [sample.delivery(CreditsGranted.model_validate_json(row[1]), event_id=row[0]) for row in rows]


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


async def history(ledger: SqlLedger, database: Database, sample: Any, seed: int = 1) -> Deliveries:
    """Apply a stream as a bad day would: in uneven batches, some late, some again."""
    chance = random.Random(seed)
    await open_accounts(ledger)
    deliveries = [*traffic(sample, chance, 20), *await grants_sent(database, sample), *traffic(sample, chance)]
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
async def test_a_bad_day_verifies_and_rebuilds_equal(ledger: SqlLedger, database: Database, sample: Any, seed: int):
    deliveries = await history(ledger, database, sample, seed)
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


COPY = (
    "number, id, key, kind, tenant, account_id, account_version, amount, balance_after, reference, description, at_ms, "
)
COPY += "period, event_id, sequence, details, posted_at_ms"
AGAIN = COPY.replace("number, id, key,", "900, 'txn_x', 'other-key',").replace("account_version", "900", 1)
CALL = "(SELECT number FROM transactions WHERE kind = 'model_usage' LIMIT 1)"
CORRUPTIONS = {
    "transaction_unbalanced": f"UPDATE postings SET amount = amount + 1 WHERE line = 1 AND transaction = {CALL}",
    "transaction_amount": f"UPDATE transactions SET amount = amount - 1 WHERE number = {CALL}",
    "balance_differs": "UPDATE accounts SET balance = balance + 1 WHERE id = 'credits:ta'",
    "bucket_differs": "UPDATE buckets SET remaining = remaining + 1 WHERE remaining < granted",
    "bucket_of_another": "UPDATE buckets SET account_id = 'grants_issued' WHERE id LIKE 'ta:%'",
    "debt_beside_credit": "UPDATE accounts SET balance = -5 WHERE id = 'credits:ta'",
    "chain_broken": f"UPDATE transactions SET balance_after = 7 WHERE number = {CALL}",
    "version_differs": "UPDATE accounts SET version = version + 1 WHERE id = 'credits:ta'",
    "charged_twice": f"INSERT INTO transactions ({COPY}) SELECT {AGAIN} FROM transactions WHERE kind = 'model_usage' LIMIT 1",
    "granted_twice": f"INSERT INTO transactions ({COPY}) SELECT {AGAIN} FROM transactions WHERE kind = 'grant' LIMIT 1",
    "machine_time_overlaps": "UPDATE transactions SET details = jsonb_set(details, '{from_seconds}', '100000') "
    "WHERE kind = 'machine_time'",
    "boot_differs": "UPDATE boots SET charged_micro = charged_micro + 1, accrued_pico = accrued_pico + 1000000",
    "call_differs": "UPDATE calls SET amount_micro = amount_micro + 1 WHERE state = 'recorded'",
    "charge_without_call": "DELETE FROM calls WHERE state = 'recorded'",
    "unknown_without_line": "UPDATE calls SET state = 'unknown', amount_micro = NULL, price_id = NULL WHERE state = 'recorded'",
    "grant_differs": "UPDATE grants SET amount_micro = amount_micro + 1",
    "usage_differs": "UPDATE usage SET burned_micro = burned_micro + 1",
    "cursor_differs": "UPDATE cursors SET position = position + 1",
    "transaction_without_event": "UPDATE transactions SET event_id = 'evt_none' WHERE kind = 'grant'",
    "event_without_transaction": "UPDATE events SET outcome = 'posted' WHERE outcome = 'unpriced'",
    "charge_differs": "UPDATE transactions SET details = jsonb_set(details, '{output_tokens}', '99999') "
    "WHERE kind = 'model_usage'",
    "grant_not_posted": "INSERT INTO grants VALUES ('ta', 'promo', '2026-11', 5, NULL, 0)",
    "event_unsound": "UPDATE events SET outcome = 'conflict' WHERE outcome = 'posted'",
    "usage_unknown": "UPDATE calls SET state = 'unknown' WHERE state = 'unpriced'",
}


def test_each_check_has_a_corruption_that_it_must_find():
    assert {check.code for check in CHECKS} | {"charge_differs"} == set(CORRUPTIONS)


@pytest.mark.parametrize("code", CORRUPTIONS)
async def test_verify_finds(ledger: SqlLedger, database: Database, sample: Any, code: str):
    await open_accounts(ledger)
    batch = [
        *await grants_sent(database, sample),
        sample.delivery(sample.metered(60)),
        sample.delivery(sample.metered(90)),
        sample.delivery(sample.recorded("c1")),
        sample.delivery(sample.recorded("c2", model="unheard-of")),
    ]
    await ledger.apply(batch, posted_at_ms=NOW)
    before = {finding.code for finding in (await verify(database.url)).findings}
    assert before == {"event_unsound"}
    async with database.engine.begin() as connection:
        for name in ("transactions", "postings"):
            await connection.execute(sa.text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
        if code == "event_unsound":
            await connection.execute(sa.text("UPDATE events SET outcome = 'noted' WHERE outcome = 'unpriced'"))
        await connection.execute(sa.text(CORRUPTIONS[code]))
    report = await verify(database.url)
    found = {finding.code: finding for finding in report.findings}
    assert code in found
    assert found[code].count >= 1
    assert report.ok is all(finding.is_warning for finding in report.findings)


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
async def test_rebuild_finds(ledger: SqlLedger, database: Database, sample: Any, statement: str, code: str):
    await open_accounts(ledger)
    deliveries = [
        *await grants_sent(database, sample),
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
