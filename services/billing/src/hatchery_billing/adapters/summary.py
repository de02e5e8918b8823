"""The summary's reads."""

from __future__ import annotations

import sqlalchemy as sa
from hatchery_common.contracts.billing import LedgerLine, SummaryRequest, SummaryResponse
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.domain.accounts import credits_of
from hatchery_billing.domain.usage import CallState


async def summarise(connection: AsyncConnection, request: SummaryRequest, period: str) -> SummaryResponse:
    """Balance, the period's sums and the latest lines, of one moment; an unknown tenant gets an unopened, empty summary."""
    await connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    account_id = credits_of(request.tenant)
    account = (await connection.execute(sa.select(sql.accounts).where(sql.accounts.c.id == account_id))).one_or_none()
    if account is None:
        return SummaryResponse(tenant=request.tenant, opened=False, period=period)
    u = sql.usage.c
    found = await connection.execute(sa.select(sql.usage).where(u.account_id == account_id, u.period == period))
    used = found.one_or_none()
    c = sql.calls.c
    unknown = sa.select(sa.func.count()).where(c.tenant == request.tenant, c.state == CallState.UNKNOWN.value)
    return SummaryResponse(
        tenant=request.tenant,
        opened=account.opened_at_ms is not None,
        balance_micro=account.balance,
        period=period,
        granted_micro=used.granted_micro if used else 0,
        burned_micro=used.burned_micro if used else 0,
        machine_seconds=used.machine_seconds if used else 0,
        input_tokens=used.input_tokens if used else 0,
        output_tokens=used.output_tokens if used else 0,
        unknown_calls=int(await connection.scalar(unknown) or 0),
        transactions=account.version,
        lines=await _lines(connection, account_id, request.limit),
    )


async def _lines(connection: AsyncConnection, account_id: str, limit: int) -> tuple[LedgerLine, ...]:
    t = sql.transactions.c
    newest = (
        sa.select(sql.transactions).where(t.account_id == account_id).order_by(t.account_version.desc()).limit(limit)
    )
    return tuple(
        LedgerLine(
            transaction_id=row.id,
            kind=row.kind,
            amount_micro=row.amount,
            posted_at_ms=row.posted_at_ms,
            reference=row.reference,
            description=row.description,
        )
        for row in await connection.execute(newest)
    )
