"""Verify finds each kind of corruption, warns of what a person should judge, and takes its time with a large ledger."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.audit import VerifyReport, rebuild, verify
from hatchery_billing.audit.checks import CHECKS
from hatchery_billing.settings import BillingSettings
from hatchery_common.database import Database

NOW = 1_793_600_000_000
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
    "credit_without_grant": "UPDATE postings SET bucket_id = NULL WHERE amount > 0",
    "machine_charge_differs": "UPDATE transactions SET amount = amount - 1 WHERE kind = 'machine_time'",
    "boot_seconds_differ": "UPDATE boots SET seconds_total = seconds_total + 1",
    "machine_seconds_differ": "UPDATE usage SET machine_seconds = machine_seconds + 1",
}
FIRST, SECOND = (f"(SELECT {which}(number) FROM transactions WHERE kind = 'machine_time')" for which in ("min", "max"))
SHIFTED = f"""
    UPDATE transactions SET amount = amount - 1, balance_after = balance_after - 1 WHERE number = {FIRST};
    UPDATE transactions SET amount = amount + 1 WHERE number = {SECOND};
    UPDATE postings SET amount = amount + sign(amount) WHERE transaction = {FIRST};
    UPDATE postings SET amount = amount - sign(amount) WHERE transaction = {SECOND}
"""
WARNINGS = {check.code for check in CHECKS if check.is_warning}


def test_each_check_has_a_corruption_that_it_must_find():
    assert {check.code for check in CHECKS} | {"charge_differs"} == set(CORRUPTIONS) | WARNINGS


async def codes(database: Database) -> set[str]:
    return {finding.code for finding in (await verify(database.url)).findings}


async def corrupted(database: Database, statements: str) -> VerifyReport:
    """What is found in a ledger that was sound but for one unpriced call."""
    assert await codes(database) == {"event_unsound"}
    async with database.engine.begin() as connection:
        for name in ("transactions", "postings", "prices"):
            await connection.execute(sa.text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
        for statement in statements.split(";"):
            await connection.execute(sa.text(statement))
    return await verify(database.url)


@pytest.fixture
async def some_traffic(ledger: SqlLedger, sample: Any, grants: Any) -> None:
    batch = [
        *await grants(),
        sample.delivery(sample.metered(60)),
        sample.delivery(sample.metered(90)),
        sample.delivery(sample.recorded("c1")),
        sample.delivery(sample.recorded("c2", model="unheard-of")),
    ]
    await ledger.apply(batch, posted_at_ms=NOW)


@pytest.mark.usefixtures("some_traffic")
@pytest.mark.parametrize("code", CORRUPTIONS)
async def test_verify_finds(database: Database, code: str):
    report = await corrupted(database, CORRUPTIONS[code])
    found = {finding.code: finding for finding in report.findings}
    assert code in found
    assert found[code].count >= 1
    assert not report.ok


@pytest.mark.usefixtures("some_traffic")
@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM cursors", {"cursor_differs"}),
        ("UPDATE usage SET input_tokens = input_tokens + 1", {"usage_differs"}),
        ("UPDATE usage SET output_tokens = output_tokens + 1", {"usage_differs"}),
        ("UPDATE usage SET machine_seconds = machine_seconds + 1", {"machine_seconds_differ"}),
        ("UPDATE boots SET seconds_total = seconds_total + 1", {"boot_seconds_differ", "machine_seconds_differ"}),
        ("UPDATE boots SET posted_seconds = posted_seconds - 1", {"boot_differs"}),
        ("UPDATE prices SET rates = '{\"second\": 1370001}' WHERE kind = 'machine'", {"boot_seconds_differ"}),
        ("UPDATE prices SET name = 'other' WHERE kind = 'machine'", {"machine_charge_differs"}),
        ("UPDATE postings SET bucket_id = NULL; DELETE FROM buckets", {"credit_without_grant", "grant_not_posted"}),
        (SHIFTED, {"machine_charge_differs"}),
        (
            "UPDATE transactions SET details = details - 'output_tokens' WHERE kind = 'model_usage'",
            {"charge_differs", "usage_differs"},
        ),
    ],
)
async def test_verify_compares_each_sum_with_what_it_is_the_sum_of(database: Database, statement: str, found: set[str]):
    report = await corrupted(database, statement)
    assert {finding.code for finding in report.findings} == found | {"event_unsound"}
    assert not report.ok


async def test_a_warning_alone_is_no_unsound_ledger(ledger: SqlLedger, database: Database, sample: Any, grants: Any):
    await grants()  # decided, not posted
    unpriced, silent = sample.recorded("c2", model="unheard-of"), sample.recorded("c3", usage_known=False)
    await ledger.apply([sample.delivery(unpriced), sample.delivery(silent)], posted_at_ms=NOW)
    report = await verify(database.url)
    assert {finding.code for finding in report.findings} == WARNINGS
    assert report.ok


async def test_cheap_seconds_carried_over_changes_of_the_price_are_sound(database: Database, sample: Any):
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO owner (one, epoch) VALUES (true, 1)"))
    seconds, deliveries = 0, []
    for step, price in enumerate(("0.3", "2", "0.004", "0", "1.5", "0.7")):
        settings = BillingSettings(machine_price={"standard": Decimal(price)}, price_list="none")
        ledger, now = SqlLedger(database, Prices(settings)), NOW + step * 1_000_000
        await ledger.renew_prices(now_ms=now, epoch=1)
        for added in (1, 2, 7):
            seconds += added
            reading = sample.metered(seconds, observed_at_ms=now + 500_000)
            deliveries.append(sample.delivery(reading))
            await ledger.apply(deliveries[-1:], posted_at_ms=now)
        assert await codes(database) == set()
    assert (await rebuild(database.url, sample.on_stream(deliveries))).ok


async def test_a_check_may_take_longer_than_a_statement_of_the_service(database: Database):
    limits: list[Any] = []

    def note(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        limits.append(parameters.get("command_timeout"))

    sa.event.listen(sa.Engine, "do_connect", note)
    try:
        assert (await verify(database.url)).ok
    finally:
        sa.event.remove(sa.Engine, "do_connect", note)
    assert limits == [None]


async def test_each_check_says_that_it_begins(database: Database):
    said: list[str] = []
    await verify(database.url, progress=said.append)
    assert said[0] == f"check 1 of {len(CHECKS) + 1}: {CHECKS[0].code}"
    assert len(said) == len(CHECKS) + 1
