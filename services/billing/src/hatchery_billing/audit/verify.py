"""Verify: every rule of the ledger, checked on the rows as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from hatchery_common.database import Database
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.adapters.books import price_of
from hatchery_billing.audit.checks import CHECKS, Check
from hatchery_billing.audit.reports import Finding, VerifyReport
from hatchery_billing.domain.book import TransactionKind
from hatchery_billing.domain.rating import rate_call

EXAMPLES = 5
_CHUNK = 2_000


async def verify(database: Database) -> VerifyReport:
    """Check the whole ledger as it stands at one moment; reads only."""
    async with database.connect() as connection:
        await connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        findings = [found for check in CHECKS if (found := await _run(connection, check)) is not None]
        findings += await _recalculate(connection)
        counts = [
            await _count(connection, table) for table in (sql.accounts, sql.transactions, sql.postings, sql.events)
        ]
    return VerifyReport(tuple(findings), *counts)


async def _count(connection: AsyncConnection, table: sa.Table) -> int:
    return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


async def _run(connection: AsyncConnection, check: Check) -> Finding | None:
    statement = f"SELECT offender, count(*) OVER () FROM ({check.query}) AS found(offender) LIMIT {EXAMPLES}"  # noqa: S608
    rows = (await connection.execute(sa.text(statement))).all()
    if not rows:
        return None
    return Finding(check.code, check.message, int(rows[0][1]), tuple(str(row[0]) for row in rows), check.is_warning)


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
            if rates is None or row.amount != -_cost(rates, row.details):
                wrong.append(str(row.id))
        last = chunk[-1].number
    message = "a charge differs from its tokens times its price"
    return [Finding("charge_differs", message, len(wrong), tuple(wrong[:EXAMPLES]))] if wrong else []


def _cost(rates: Mapping[str, Any], details: Mapping[str, Any]) -> int:
    tokens = {name: int(details[name]) for name in ("input_tokens", "cached_tokens", "output_tokens")}
    return rate_call(dict(rates), **tokens).amount_micro
