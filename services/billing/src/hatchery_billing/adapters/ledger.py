"""The ledger in Postgres: each method is one transaction, its events go out through the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.billing import (
    AccountOpened,
    CreditsGranted,
    LedgerPosted,
    SummaryRequest,
    SummaryResponse,
    UsageUnknown,
)
from hatchery_common.database import Database, UnitOfWork
from hatchery_common.failpoints import reach
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.adapters.books import apply_facts, price_of, price_row
from hatchery_billing.adapters.bulk import insert_rows
from hatchery_billing.adapters.summary import summarise
from hatchery_billing.domain.accounts import AccountKind, credits_of
from hatchery_billing.domain.book import Fact, Transaction
from hatchery_billing.domain.prices import CHANGE_NOTICE_MS, Price
from hatchery_billing.domain.usage import CallState
from hatchery_billing.ports import BatchReport, GrantDecision, PriceSource


class SqlLedger:
    """The port Ledger on Postgres."""

    def __init__(self, database: Database, prices: PriceSource) -> None:
        self._database = database
        self._prices = prices

    async def apply(self, deliveries: Sequence[Delivery[Any]], *, posted_at_ms: int) -> BatchReport:
        """Dedupe, money, cursor and outgoing events in one transaction."""
        facts = [Fact(delivery.id, delivery.sequence, delivery.message) for delivery in deliveries]
        causes = {delivery.id: delivery for delivery in deliveries}
        async with self._database.unit_of_work() as work:
            result = await apply_facts(
                work.connection, deliveries[0].stream, facts, source=self._prices, posted_at_ms=posted_at_ms
            )
            posted = [(_posted(row, posted_at_ms), causes[row.event_id]) for row in result.transactions]
            await work.emit_all(posted)
            reach("billing.batch_before_commit")
        reach("billing.after_commit_before_ack")
        return result.report

    async def open_account(
        self, delivery: Delivery[OpenAccount], *, opened_at_ms: int, grant: GrantDecision | None
    ) -> None:
        """Open the account and decide its first grant, once each however often the wish comes."""
        tenant = delivery.message.tenant
        async with self._database.unit_of_work(delivery) as work:
            if not await work.first_delivery():
                return
            if await _open(work.connection, tenant, opened_at_ms):
                await work.emit(AccountOpened(tenant=tenant, opened_at_ms=opened_at_ms))
            if grant is not None:
                await _grant(work, [tenant], grant)

    async def grant_to_all(self, decision: GrantDecision, *, epoch: int, limit: int) -> int:
        """Decide this grant for up to `limit` open accounts that lack it; returns how many, 0 when none is left."""
        g, a = sql.grants.c, sql.accounts.c
        has_it = sa.exists().where(g.tenant == a.tenant, g.grant == decision.grant, g.period == decision.period)
        open_without = sa.select(a.tenant).where(a.opened_at_ms.is_not(None), a.tenant.is_not(None), ~has_it)
        async with self._database.unit_of_work(epoch=epoch) as work:
            tenants = (await work.connection.execute(open_without.order_by(a.tenant).limit(limit))).scalars().all()
            await _grant(work, [str(tenant) for tenant in tenants], decision)
        return len(tenants)

    async def notice_unknown(self, *, before_ms: int, now_ms: int, epoch: int, limit: int) -> int:
        """Report up to `limit` calls that were opened before a moment and never recorded; each once."""
        c = sql.calls.c
        silent = sa.and_(c.state == CallState.OPENED.value, c.opened_at_ms < before_ms, c.noticed_at_ms.is_(None))
        due = sa.select(c.call_id).where(silent).order_by(c.opened_at_ms).limit(limit).with_for_update(skip_locked=True)
        mark = sql.calls.update().where(c.call_id.in_(due)).values(noticed_at_ms=now_ms)
        marked = mark.returning(c.tenant, c.call_id, c.instance_id, c.opened_at_ms)
        async with self._database.unit_of_work(epoch=epoch) as work:
            rows = (await work.connection.execute(marked)).all()
            await work.emit_all(
                [
                    (
                        UsageUnknown(
                            tenant=row.tenant,
                            call_id=row.call_id,
                            instance_id=row.instance_id,
                            opened_at_ms=row.opened_at_ms,
                            noticed_at_ms=now_ms,
                        ),
                        None,
                    )
                    for row in rows
                ]
            )
        return len(rows)

    async def renew_prices(self, *, now_ms: int, epoch: int) -> int:
        """Write a row for every known price that has changed at its source; it takes effect after the notice."""
        effective = now_ms + CHANGE_NOTICE_MS
        p = sql.prices.c
        latest = (
            sa.select(sql.prices).ext(distinct_on(p.kind, p.name)).order_by(p.kind, p.name, p.effective_from_ms.desc())
        )
        async with self._database.connect() as connection:
            known = [price_of(row) for row in (await connection.execute(latest)).mappings()]
        changed: list[Price] = []
        for price in known:
            quote = await self._prices.quote(price.key, effective)
            if quote.rates != price.rates and effective > price.effective_from_ms:
                changed.append(Price(price.key, effective, quote.source, quote.rates))
        async with self._database.unit_of_work(epoch=epoch) as work:
            rows = [price_row(price) for price in changed]
            await insert_rows(work.connection, sql.prices, rows, conflict="ON CONFLICT DO NOTHING")
        return len(changed)

    async def summarise(self, request: SummaryRequest, *, period: str) -> SummaryResponse:
        """The tenant's balance, the period's sums and the latest lines."""
        async with self._database.connect() as connection:
            return await summarise(connection, request, period)


def _posted(row: Transaction, posted_at_ms: int) -> Message:
    return LedgerPosted(
        tenant=row.tenant, transaction_id=row.id, transaction_kind=row.kind, amount_micro=row.amount,
        balance_micro=row.balance_after, version=row.account_version, reference=row.reference, posted_at_ms=posted_at_ms,
    )  # fmt: skip


async def _open(connection: AsyncConnection, tenant: str, opened_at_ms: int) -> bool:
    """True when this call opened it; an account that money reached before its owner's wish is opened too."""
    row = {
        "id": credits_of(tenant), "kind": AccountKind.TENANT_CREDITS.value, "tenant": tenant, "balance": 0,
        "held": 0, "version": 0, "suspended": False, "opened_at_ms": opened_at_ms,
    }  # fmt: skip
    opened = insert(sql.accounts).values(row)
    opened = opened.on_conflict_do_update(
        index_elements=["id"], set_={"opened_at_ms": opened_at_ms}, where=sql.accounts.c.opened_at_ms.is_(None)
    )
    return (await connection.execute(opened.returning(sql.accounts.c.id))).first() is not None


async def _grant(work: UnitOfWork, tenants: Sequence[str], decision: GrantDecision) -> None:
    """Decide the grant for those who lack it and emit the fact from which the money is posted."""
    if not tenants:
        return
    same: dict[str, Any] = {
        "grant": decision.grant, "period": decision.period, "amount_micro": decision.amount_micro,
        "expires_at_ms": decision.expires_at_ms, "granted_at_ms": decision.granted_at_ms,
    }  # fmt: skip
    rows = insert(sql.grants).values([{"tenant": tenant, **same} for tenant in tenants]).on_conflict_do_nothing()
    decided = (await work.connection.execute(rows.returning(sql.grants.c.tenant))).scalars().all()
    await work.emit_all([(CreditsGranted(tenant=tenant, **same), None) for tenant in decided])
