"""Rebuild: replay the event log into shadow tables by the code that runs live, and compare row by row.

The shadow is the session's temporary schema, so it needs no rights and leaves nothing. All of it happens in one REPEATABLE READ
transaction: the live ledger stands still while it is compared. Events are replayed in the order in which the live ledger
applied them (redeliveries may reorder a stream); what they did is computed anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import sqlalchemy as sa
from hatchery_common.bus.delivery import Delivery
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.adapters.books import apply_facts
from hatchery_billing.audit.order import Order, runs
from hatchery_billing.audit.reports import Finding, RebuildReport
from hatchery_billing.audit.snapshot import SCHEMA, snapshot
from hatchery_billing.domain.book import Fact
from hatchery_billing.domain.prices import PriceKey
from hatchery_billing.ports import Quote

EXAMPLES = 5
_CHUNK = 500
_NOT_REPLAYED: dict[str, frozenset[str]] = {  # set by wishes, the clock or the transport, not by what is replayed
    "accounts": frozenset({"opened_at_ms", "held", "suspended"}),
    "transactions": frozenset({"posted_at_ms", "sequence"}),
    "calls": frozenset({"noticed_at_ms"}),
    "events": frozenset({"sequence"}),
    "cursors": frozenset({"last_sequence"}),
}


class _Recorded:
    """The live price book was copied: a price that it lacks is a fault of its own."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    async def quote(self, key: PriceKey, at_ms: int) -> Quote:
        self.missing.append(f"{key.kind}/{key.name}")
        return Quote("missing", None)


async def rebuild(
    database_url: str, events: AsyncIterator[Delivery[Any]], *, settled_to: int | None = None
) -> RebuildReport:
    """Replay the stream's money events and compare; raises DependencyUnavailable when Postgres goes away.

    `settled_to` is the sequence up to which the ledger had acknowledged all before this began: what it does not know beyond
    that is still on its way. By default it is the highest sequence applied, which is right while nothing is delivered again.
    """
    async with snapshot(database_url, "rebuilding the ledger") as connection:
        return await _Rebuild(connection, settled_to).run(events)


class _Rebuild:
    """One rebuild on one connection."""

    def __init__(self, connection: AsyncConnection, settled_to: int | None) -> None:
        self._connection = connection
        self._settled_to = settled_to
        self._prices = _Recorded()
        self._stream = "EVT"
        self._lost: list[str] = []
        self._replayed = 0
        self._pending = 0

    async def run(self, events: AsyncIterator[Delivery[Any]]) -> RebuildReport:
        """Replay, compare, report."""
        positions, highest = await self._live()
        settled_to = highest if self._settled_to is None else self._settled_to
        await self._make_shadow()
        await self._replay(events, positions, settled_to)
        findings = self._stream_findings(positions)
        for table in sql.LEDGER_TABLES:
            findings += await self._compare(table)
        transactions = int(await self._connection.scalar(sa.text("SELECT count(*) FROM pg_temp.transactions")) or 0)
        return RebuildReport(tuple(findings), self._replayed, transactions, self._pending)

    async def _live(self) -> tuple[dict[str, int], int]:
        """Where the live ledger put each event, and how far it is."""
        rows = await self._connection.execute(sa.select(sql.events.c.event_id, sql.events.c.position))
        positions = {str(row.event_id): int(row.position) for row in rows}
        cursor = (await self._connection.execute(sa.select(sql.cursors))).first()
        if cursor is not None:
            self._stream = str(cursor.stream)
        return positions, int(cursor.last_sequence) if cursor is not None else 0

    async def _make_shadow(self) -> None:
        """Temporary tables of the same names come first in the search path from here on."""
        for table in sql.LEDGER_TABLES:
            await self._execute(f"CREATE TEMP TABLE {table.name} (LIKE {SCHEMA}.{table.name} INCLUDING ALL)")
        await self._execute(f"INSERT INTO pg_temp.prices SELECT * FROM {SCHEMA}.prices")  # noqa: S608

    async def _execute(self, statement: str) -> None:
        await self._connection.execute(sa.text(statement))

    async def _replay(self, events: AsyncIterator[Delivery[Any]], positions: dict[str, int], settled_to: int) -> None:
        order = Order(positions)
        batch: list[Fact] = []
        async for delivery in events:
            if delivery.id in positions:
                order.put(Fact(delivery.id, delivery.sequence, delivery.message))
                batch += order.ready()
            elif delivery.sequence > settled_to:
                self._pending += 1
            else:
                self._lost.append(f"{delivery.id} (sequence {delivery.sequence})")
            if len(batch) >= _CHUNK:
                await self._apply(batch)
                batch = []
        await self._apply([*batch, *order.ready(rest=True)])

    async def _apply(self, facts: Sequence[Fact]) -> None:
        for run in runs(facts, most=_CHUNK):
            result = await apply_facts(self._connection, self._stream, run, source=self._prices, posted_at_ms=0)
            self._replayed += sum(result.report.outcomes.values())

    def _stream_findings(self, positions: dict[str, int]) -> list[Finding]:
        findings: list[Finding] = []
        if self._lost:
            message = "the ledger is past an event on the stream that it never applied"
            findings.append(Finding("event_not_applied", message, len(self._lost), tuple(self._lost[:EXAMPLES])))
        if self._replayed < len(positions):
            message = "the ledger applied events that the stream does not hold"
            findings.append(Finding("event_not_on_stream", message, len(positions) - self._replayed, ()))
        if self._prices.missing:
            missing = tuple(self._prices.missing[:EXAMPLES])
            findings.append(Finding("price_missing", "a price is not in the book", len(self._prices.missing), missing))
        return findings

    async def _compare(self, table: sa.Table) -> list[Finding]:
        """Rows that only one of the two has."""
        skipped = _NOT_REPLAYED.get(table.name, frozenset())
        columns = ", ".join(f'"{column.name}"' for column in table.c if column.name not in skipped)
        # an account may have been opened, or a free machine counted, before any money reached it
        where = " WHERE version > 0 OR balance <> 0" if table is sql.accounts else ""
        live, shadow = (f"SELECT {columns} FROM {schema}.{table.name}{where}" for schema in (SCHEMA, "pg_temp"))  # noqa: S608
        findings: list[Finding] = []
        for side, query in (
            ("live", f"({live}) EXCEPT ALL ({shadow})"),
            ("rebuilt", f"({shadow}) EXCEPT ALL ({live})"),
        ):
            statement = f"SELECT to_jsonb(d)::text, count(*) OVER () FROM ({query}) AS d LIMIT {EXAMPLES}"  # noqa: S608
            rows = (await self._connection.execute(sa.text(statement))).all()
            if rows:
                message = f"rows of {table.name} stand only in the {side} ledger"
                examples = tuple(str(row[0]) for row in rows)
                findings.append(Finding(f"{table.name}_only_{side}", message, int(rows[0][1]), examples))
        return findings
