"""The ledger on a real Postgres: one transaction a batch, duplicates, constraints, grants, silence, prices."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.adapters.sql import metadata
from hatchery_billing.domain.book import Outcome
from hatchery_billing.ports import GrantDecision
from hatchery_billing.settings import BillingSettings
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import SummaryRequest
from hatchery_common.database import Database
from hatchery_common.errors import OwnershipLost
from hatchery_common.testing.postgres import scalar
from sqlalchemy.exc import DBAPIError

NOW = 1_793_600_000_000
AGAIN = "INSERT INTO transactions SELECT 9, 'x', key, kind, tenant, account_id, 9, 0, 0, '', '', 0, '', '', 0, '{}', 0 "
AGAIN += "FROM transactions"
MONTHLY = GrantDecision("monthly", "2026-11", 5_000_000, NOW)


async def all_of(database: Database, query: str) -> list[Any]:
    async with database.connect() as connection:
        return list((await connection.execute(sa.text(query))).all())


def wish(event_id: str, tenant: str = "ta") -> Delivery[Any]:
    message = OpenAccount(tenant=tenant)
    return Delivery(
        message, event_id, message.message_type(), tenant, message.subject, "api", datetime.now(UTC), "CMD", 1
    )


async def test_migration_equals_the_declared_tables(database: Database):
    def differences(connection: sa.Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with database.connect() as connection:
        found = await connection.run_sync(differences)
    assert [entry for entry in found if "alembic_version" not in str(entry)] == []


async def test_a_batch_moves_money_cursor_and_events_together(ledger: SqlLedger, database: Database, sample: Any):
    batch = [
        sample.delivery(sample.grant()),
        sample.delivery(sample.metered(60)),
        sample.delivery(sample.recorded("c1")),
    ]
    report = await ledger.apply(batch, posted_at_ms=NOW)
    assert report.outcomes == {Outcome.POSTED: 3}
    # 60 s x 1.37 = 82.2, rounded down; 1000 x 2.5 + 10 x 10.001 = 2600.01, rounded to even
    assert await scalar(database, "SELECT balance FROM accounts WHERE id = 'credits:ta'") == 5_000_000 - 82 - 2600
    assert await scalar(database, "SELECT sum(balance) FROM accounts") == 0
    assert await all_of(database, "SELECT last_sequence, position, transactions FROM cursors") == [(3, 3, 3)]
    posted = await all_of(database, "SELECT headers->>'ce-causationid' FROM outbox ORDER BY id")
    assert posted == [("evt_1",), ("evt_2",), ("evt_3",)]


async def test_what_comes_twice_counts_once(ledger: SqlLedger, database: Database, sample: Any):
    batch = [
        sample.delivery(sample.grant()),
        sample.delivery(sample.metered(60)),
        sample.delivery(sample.recorded("c1")),
    ]
    await ledger.apply(batch, posted_at_ms=NOW)
    again = await ledger.apply([*batch, batch[0]], posted_at_ms=NOW)  # redelivered
    other_ids = [sample.delivery(delivery.message) for delivery in batch]  # published again under new ids
    renamed = await ledger.apply(other_ids, posted_at_ms=NOW)
    assert (again.outcomes, again.repeated) == ({}, 4)
    assert renamed.outcomes == {Outcome.DUPLICATE: 3}
    assert await scalar(database, "SELECT count(*) FROM transactions") == 3
    assert await scalar(database, "SELECT count(*) FROM outbox") == 3


async def test_racing_batches_post_once(ledger: SqlLedger, database: Database, sample: Any):
    batch = [sample.delivery(sample.grant()), *(sample.delivery(sample.recorded(f"c{n}")) for n in range(20))]
    await asyncio.gather(*(ledger.apply(batch, posted_at_ms=NOW) for _ in range(4)))
    assert await scalar(database, "SELECT count(*) FROM transactions") == 21
    assert await scalar(database, "SELECT max(position) FROM events") == 21


async def test_one_bad_event_does_not_stop_the_others(ledger: SqlLedger, database: Database, sample: Any):
    batch = [
        sample.delivery(sample.recorded("c1", tokens=10**12)),
        sample.delivery(sample.recorded("c2", model="no\0such")),
        sample.delivery(sample.recorded("c3", cached_tokens=2000)),
        sample.delivery(sample.recorded("c4", model="unheard-of")),
        sample.delivery(sample.metered(60, size="huge")),
        sample.delivery(sample.metered(10**13, boot="b2")),
        sample.delivery(sample.recorded("c5")),
    ]
    report = await ledger.apply(batch, posted_at_ms=NOW)
    assert [outcome for _, outcome, _ in report.unsound] == [
        Outcome.REFUSED, Outcome.REFUSED, Outcome.REFUSED, Outcome.UNPRICED, Outcome.UNPRICED, Outcome.REFUSED,
    ]  # fmt: skip
    assert await scalar(database, "SELECT balance FROM accounts WHERE id = 'credits:ta'") == -2600
    assert await scalar(database, "SELECT reason FROM events WHERE outcome = 'unpriced' LIMIT 1")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transactions SET amount = 1",
        "DELETE FROM postings",
        "TRUNCATE postings",
        "UPDATE prices SET rates = NULL",
        "INSERT INTO postings VALUES (1, 9, 'credits:ta', NULL, 5)",
        "UPDATE buckets SET remaining = -1",
        "UPDATE accounts SET held = -1",
        "INSERT INTO buckets SELECT 'x', account_id, \"grant\", period, 1, 1, 1 FROM buckets",
        AGAIN,
        "INSERT INTO postings SELECT * FROM postings",
    ],
)
async def test_the_schema_itself_refuses(ledger: SqlLedger, database: Database, sample: Any, statement: str):
    await ledger.apply([sample.delivery(sample.grant()), sample.delivery(sample.recorded("c1"))], posted_at_ms=NOW)
    with pytest.raises(DBAPIError):
        async with database.engine.begin() as connection:
            await connection.execute(sa.text(statement))


async def test_opening_twice_at_once_grants_once(ledger: SqlLedger, database: Database):
    wishes = [wish(f"cmd_{n // 2}") for n in range(8)]  # each twice
    await asyncio.gather(*(ledger.open_account(each, opened_at_ms=NOW, grant=MONTHLY) for each in wishes))
    types = await all_of(database, "SELECT headers->>'ce-type' FROM outbox ORDER BY id")
    assert sorted(types) == [("hatchery.account.credits_granted.v1",), ("hatchery.account.opened.v1",)]


async def test_the_clock_grants_each_account_once_a_period(ledger: SqlLedger, database: Database, sample: Any):
    for number in range(7):
        await ledger.open_account(wish(f"cmd_{number}", f"t{number}"), opened_at_ms=NOW, grant=None)
    await ledger.apply([sample.delivery(sample.metered(60, tenant="tnever"))], posted_at_ms=NOW)  # has no owner's wish
    await database_epoch(database)
    counts = await asyncio.gather(*(ledger.grant_to_all(MONTHLY, epoch=1, limit=3) for _ in range(6)))
    while await ledger.grant_to_all(MONTHLY, epoch=1, limit=3):
        pass
    assert sum(counts) >= 7
    granted = "SELECT count(*) FROM outbox WHERE headers->>'ce-type' = 'hatchery.account.credits_granted.v1'"
    assert await scalar(database, granted) == 7
    assert await scalar(database, "SELECT count(*) FROM grants") == 7


async def database_epoch(database: Database, epoch: int = 1) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(f"INSERT INTO owner (one, epoch) VALUES (true, {epoch})"))


async def test_a_late_owner_grants_nothing(ledger: SqlLedger, database: Database):
    await ledger.open_account(wish("cmd_1"), opened_at_ms=NOW, grant=None)
    await database_epoch(database, 2)
    with pytest.raises(OwnershipLost):
        await ledger.grant_to_all(MONTHLY, epoch=1, limit=10)
    assert await scalar(database, "SELECT count(*) FROM grants") == 0


async def test_silence_is_reported_once_and_a_late_record_still_counts(
    ledger: SqlLedger, database: Database, sample: Any
):
    await database_epoch(database)
    opened = [sample.delivery(sample.opened(f"c{n}", at_ms=NOW)) for n in range(3)]
    await ledger.apply([*opened, sample.delivery(sample.recorded("c0"))], posted_at_ms=NOW)
    first = await ledger.notice_unknown(before_ms=NOW + 1, now_ms=NOW + 1, epoch=1, limit=10)
    second = await ledger.notice_unknown(before_ms=NOW + 1, now_ms=NOW + 2, epoch=1, limit=10)
    assert (first, second) == (2, 0)
    await ledger.apply([sample.delivery(sample.unknown("c1")), sample.delivery(sample.unknown("c2"))], posted_at_ms=NOW)
    summary = await ledger.summarise(SummaryRequest(tenant="ta"), period="2026-11")
    assert summary.unknown_calls == 2
    await ledger.apply([sample.delivery(sample.recorded("c1"))], posted_at_ms=NOW)
    summary = await ledger.summarise(SummaryRequest(tenant="ta"), period="2026-11")
    assert (summary.unknown_calls, summary.balance_micro) == (1, -5200)
    assert [line.kind for line in summary.lines] == ["model_usage", "usage_unknown", "usage_unknown", "model_usage"]


async def test_a_record_without_counts_is_named_once(ledger: SqlLedger, sample: Any):
    record = sample.delivery(sample.recorded("c1", usage_known=False))
    first = await ledger.apply([sample.delivery(sample.opened("c1")), record], posted_at_ms=NOW)
    again = await ledger.apply([record, sample.delivery(record.message)], posted_at_ms=NOW)
    reason = "call c1 ended without the provider's token counts: not charged"
    assert (first.unknown, again.unknown) == (((record.id, reason),), ())


async def test_a_changed_price_takes_effect_after_the_notice(ledger: SqlLedger, database: Database, sample: Any):
    await database_epoch(database)
    await ledger.apply([sample.delivery(sample.metered(100))], posted_at_ms=NOW)
    dearer = SqlLedger(database, Prices(BillingSettings(machine_price={"standard": Decimal(2)}, price_list="none")))
    assert await dearer.renew_prices(now_ms=NOW, epoch=1) == 1
    assert await dearer.renew_prices(now_ms=NOW + 600_000, epoch=1) == 0
    before, after = NOW + 60_000, NOW + 600_000
    await dearer.apply([sample.delivery(sample.metered(200, observed_at_ms=before))], posted_at_ms=NOW)
    await dearer.apply([sample.delivery(sample.metered(300, observed_at_ms=after))], posted_at_ms=NOW)
    amounts = await all_of(database, "SELECT amount FROM transactions ORDER BY number")
    assert amounts == [(-137,), (-137,), (-200,)]


async def test_seconds_of_a_size_without_a_price_are_charged_once_it_has_one(
    ledger: SqlLedger, database: Database, sample: Any
):
    await database_epoch(database)
    await ledger.apply([sample.delivery(sample.metered(100, size="huge", observed_at_ms=NOW))], posted_at_ms=NOW)
    priced = SqlLedger(database, Prices(BillingSettings(machine_price={"huge": Decimal(3)}, price_list="none")))
    await priced.renew_prices(now_ms=NOW, epoch=1)
    late = sample.metered(160, size="huge", observed_at_ms=NOW + 600_000)
    await priced.apply([sample.delivery(late)], posted_at_ms=NOW)
    assert await all_of(database, "SELECT amount FROM transactions") == [(-480,)]


async def test_the_summary_of_nobody_is_empty_and_of_an_opened_account_is_not(ledger: SqlLedger, sample: Any):
    assert not (await ledger.summarise(SummaryRequest(tenant="tnobody"), period="2026-11")).opened
    await ledger.open_account(wish("cmd_1"), opened_at_ms=NOW, grant=MONTHLY)
    await ledger.apply([sample.delivery(sample.grant()), sample.delivery(sample.metered(60))], posted_at_ms=NOW)
    summary = await ledger.summarise(SummaryRequest(tenant="ta", limit=1), period="2026-11")
    assert (summary.opened, summary.balance_micro, summary.granted_micro) == (True, 4_999_918, 5_000_000)
    assert (summary.burned_micro, summary.machine_seconds, summary.transactions) == (82, 60, 2)
    assert len(summary.lines) == 1
    assert summary.lines[0].description == "60 s of a standard machine"
