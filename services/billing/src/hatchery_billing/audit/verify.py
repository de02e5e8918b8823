"""Verify: every rule of the ledger, checked on the rows as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.adapters.books import price_of
from hatchery_billing.audit.checks import CHECKS, Check
from hatchery_billing.audit.reports import Finding, VerifyReport
from hatchery_billing.audit.snapshot import snapshot
from hatchery_billing.domain.book import TransactionKind
from hatchery_billing.domain.rating import rate_call

EXAMPLES = 5
_CHUNK = 2_000
Progress = Callable[[str], None]


async def verify(database_url: str, *, progress: Progress = lambda _: None) -> VerifyReport:
    """Check the whole ledger as it stands at one moment; reads only. Raises DependencyUnavailable when Postgres goes away."""
    findings: list[Finding] = []
    async with snapshot(database_url, "verifying the ledger") as connection:
        await connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        for number, check in enumerate(CHECKS, start=1):
            progress(f"check {number} of {len(CHECKS) + 1}: {check.code}")
            findings += await _run(connection, check)
        progress(f"check {len(CHECKS) + 1} of {len(CHECKS) + 1}: charge_differs")
        findings += await _recalculate(connection)
        counts = [
            await _count(connection, table) for table in (sql.accounts, sql.transactions, sql.postings, sql.events)
        ]
    return VerifyReport(tuple(findings), *counts)


async def _count(connection: AsyncConnection, table: sa.Table) -> int:
    return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


async def _run(connection: AsyncConnection, check: Check) -> list[Finding]:
    statement = f"SELECT offender, count(*) OVER () FROM ({check.query}) AS found(offender) LIMIT {EXAMPLES}"  # noqa: S608
    rows = (await connection.execute(sa.text(statement))).all()
    if not rows:
        return []
    examples = tuple(str(row[0]) for row in rows)
    return [Finding(check.code, check.message, int(rows[0][1]), examples, check.is_warning)]


async def _recalculate(connection: AsyncConnection) -> list[Finding]:
    """Every charge of a model call once more, from the tokens and the price that stand with it."""
    rows = (await connection.execute(sa.select(sql.prices))).mappings()
    prices = {row["id"]: price_of(row) for row in rows}
    t = sql.transactions.c
    charges = sa.select(t.number, t.id, t.amount, t.details).where(t.kind == TransactionKind.MODEL_USAGE.value)
    wrong: list[str] = []
    last = 0
    while chunk := (await connection.execute(charges.where(t.number > last).order_by(t.number).limit(_CHUNK))).all():
        for row in chunk:
            price = prices.get(row.details.get("price_id"))
            rates = price.rates if price else None
            cost = None if rates is None else _cost(rates, row.details)
            if cost is None or row.amount != -cost:
                wrong.append(str(row.id))
        last = chunk[-1].number
    message = "a charge differs from its tokens times its price"
    return [Finding("charge_differs", message, len(wrong), tuple(wrong[:EXAMPLES]))] if wrong else []


def _cost(rates: Mapping[str, Any], details: Mapping[str, Any]) -> int | None:
    """What these tokens cost at these rates; None when a count is missing, which no charge can equal."""
    try:
        tokens = {name: int(details[name]) for name in ("input_tokens", "cached_tokens", "output_tokens")}
    except (KeyError, TypeError, ValueError):
        return None
    return rate_call(dict(rates), **tokens).amount_micro
