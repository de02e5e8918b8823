"""The summary is of one moment."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_common.contracts.billing import SummaryRequest
from hatchery_common.database import Database

WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage'::regclass"


async def test_a_charge_in_the_middle_of_a_summary_is_in_all_of_it_or_in_none(
    ledger: SqlLedger, database: Database, sample: Any
):
    await ledger.apply([sample.delivery(sample.grant(amount=1_000))], posted_at_ms=0)
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE"))
        asked = asyncio.create_task(ledger.summarise(SummaryRequest(tenant="ta"), period="2026-11"))
        async with asyncio.timeout(10):
            while not await connection.scalar(sa.text(WAITS)):  # noqa: ASYNC110 - Postgres tells nobody
                await asyncio.sleep(0.02)
        await connection.execute(sa.text("UPDATE accounts SET balance = balance - 82 WHERE id = 'credits:ta'"))
        await connection.execute(sa.text("UPDATE usage SET burned_micro = 82"))
    summary = await asked
    assert (summary.balance_micro, summary.burned_micro) == (1_000, 0)
