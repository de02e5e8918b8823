"""Applying events on a connection: load what they concern, fold, write back in bulk. Live batches and rebuilds share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import sqlalchemy as sa
from hatchery_common.contracts.billing import CreditsGranted
from hatchery_common.contracts.instances import InstanceMetered
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_billing.adapters import sql
from hatchery_billing.adapters.bulk import add_up, among, insert_rows, overwrite, pair_among
from hatchery_billing.domain.accounts import SYSTEM_KINDS, Account, AccountKind, Bucket, bucket_id, credits_of
from hatchery_billing.domain.book import Applied, Book, Fact, Outcome, Transaction
from hatchery_billing.domain.flaws import flaw
from hatchery_billing.domain.fold import apply, price_key
from hatchery_billing.domain.prices import Price, PriceBook, PriceKey, PriceKind
from hatchery_billing.domain.usage import Boot, Call, CallState
from hatchery_billing.ports import BatchReport, PriceSource

UNSOUND = frozenset({Outcome.CONFLICT, Outcome.UNPRICED, Outcome.REFUSED})
_T = TypeVar("_T")


@dataclass(frozen=True)
class Cursor:
    """How far the stream is applied: the highest sequence, and how many events and transactions there are."""

    last_sequence: int
    position: int
    transactions: int


@dataclass(frozen=True)
class BatchResult:
    """The batch's new transactions and its report."""

    transactions: list[Transaction]
    report: BatchReport


async def apply_facts(
    connection: AsyncConnection, stream: str, facts: Sequence[Fact], *, source: PriceSource, posted_at_ms: int
) -> BatchResult:
    """Apply the facts that are new, in the order of the stream; the caller's transaction holds it all."""
    cursor = await _lock_cursor(connection, stream)
    fresh = await _fresh(connection, facts)
    highest = max([cursor.last_sequence, *(fact.sequence for fact in facts)])
    if not fresh:
        await _move_cursor(connection, stream, Cursor(highest, cursor.position, cursor.transactions))
        return BatchResult([], BatchReport({}, len(facts), ()))
    sound = [fact for fact in fresh if flaw(fact.event) is None]
    book = await _load(connection, sound)
    new_prices = await _complete_prices(book.prices, sound, source)
    applied = [apply(book, fact) for fact in fresh]
    await insert_rows(connection, sql.prices, [price_row(price) for price in new_prices])
    await _save(connection, book, cursor.transactions, posted_at_ms)
    await _save_events(connection, cursor.position, fresh, applied)
    moved = Cursor(highest, cursor.position + len(fresh), cursor.transactions + len(book.transactions))
    await _move_cursor(connection, stream, moved)
    return BatchResult(book.transactions, _report(facts, fresh, applied))


def _report(facts: Sequence[Fact], fresh: Sequence[Fact], applied: Sequence[Applied]) -> BatchReport:
    both = list(zip(fresh, applied, strict=True))
    unsound = [(fact.event_id, found.outcome, found.reason or "") for fact, found in both if found.outcome in UNSOUND]
    unknown = [(fact.event_id, found.alert) for fact, found in both if found.alert is not None]
    counts = Counter(found.outcome for found in applied)
    return BatchReport(dict(counts), len(facts) - len(fresh), tuple(unsound), tuple(unknown))


async def _lock_cursor(connection: AsyncConnection, stream: str) -> Cursor:
    start = {"stream": stream, "last_sequence": 0, "position": 0, "transactions": 0}
    await insert_rows(connection, sql.cursors, [start], conflict="ON CONFLICT DO NOTHING")
    query = sa.select(sql.cursors).where(sql.cursors.c.stream == stream).with_for_update()
    row = (await connection.execute(query)).one()
    return Cursor(row.last_sequence, row.position, row.transactions)


async def _move_cursor(connection: AsyncConnection, stream: str, cursor: Cursor) -> None:
    await connection.execute(sql.cursors.update().where(sql.cursors.c.stream == stream).values(**asdict(cursor)))


async def _fresh(connection: AsyncConnection, facts: Sequence[Fact]) -> list[Fact]:
    """The facts not applied yet, each once, in the order of the stream."""
    seen = set(await _column(connection, sql.events.c.event_id, {fact.event_id for fact in facts}))
    fresh: list[Fact] = []
    for fact in sorted(facts, key=lambda fact: fact.sequence):
        if fact.event_id not in seen:
            seen.add(fact.event_id)
            fresh.append(fact)
    return fresh


async def _column(connection: AsyncConnection, column: sa.Column[str], values: Iterable[str]) -> list[str]:
    return list((await connection.execute(sa.select(column).where(among(column, values)))).scalars())


def _only(kind: type[_T], row: Mapping[Any, Any]) -> _T:
    """A domain object from a row that may have more columns."""
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]


async def _rows(connection: AsyncConnection, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
    return (await connection.execute(query)).mappings().all()


async def _load(connection: AsyncConnection, facts: Sequence[Fact]) -> Book:
    """The book of these facts, its accounts locked in the order of their ids."""
    events = [fact.event for fact in facts]
    owners = sorted({credits_of(event.tenant) for event in events})
    granted = [
        bucket_id(event.tenant, event.grant, event.period) for event in events if isinstance(event, CreditsGranted)
    ]
    boots = sorted({(event.instance_id, event.boot_id) for event in events if isinstance(event, InstanceMetered)})
    calls = sorted({str(call_id) for event in events if (call_id := getattr(event, "call_id", None))})
    names = sorted({(key.kind.value, key.name) for event in events if (key := price_key(event))})
    ids = sorted([*owners, *(kind.value for kind in SYSTEM_KINDS)])
    c = sql.accounts.c
    found = await _rows(connection, sa.select(sql.accounts).where(among(c.id, ids)).order_by(c.id).with_for_update())
    book = Book(accounts={row["id"]: _account(row) for row in found})
    b = sql.buckets.c
    spendable = sa.and_(among(b.account_id, owners), b.remaining > 0)
    for row in await _rows(connection, sa.select(sql.buckets).where(sa.or_(spendable, among(b.id, granted)))):
        book.buckets[row["id"]] = _only(Bucket, row)
    if boots:
        these = pair_among(sql.boots.c.instance_id, sql.boots.c.boot_id, boots)
        for row in await _rows(connection, sa.select(sql.boots).where(these)):
            book.boots[row["instance_id"], row["boot_id"]] = _only(Boot, row)
    if calls:
        these = among(sql.calls.c.call_id, calls)
        for row in await _rows(connection, sa.select(sql.calls).where(these).with_for_update()):
            book.calls[row["call_id"]] = _only(Call, {**row, "state": CallState(row["state"])})
    if names:
        these = pair_among(sql.prices.c.kind, sql.prices.c.name, names)
        rows = await _rows(connection, sa.select(sql.prices).where(these))
        book.prices = PriceBook(price_of(row) for row in rows)
    return book


def _account(row: Mapping[Any, Any]) -> Account:
    return _only(Account, {**row, "kind": AccountKind(row["kind"])})


def price_of(row: Mapping[Any, Any]) -> Price:
    """A price from its row."""
    key = PriceKey(PriceKind(row["kind"]), row["name"])
    return Price(key, row["effective_from_ms"], row["source"], row["rates"])


def price_row(price: Price) -> dict[str, Any]:
    """The row of a price."""
    return {
        "id": price.id, "kind": price.key.kind.value, "name": price.key.name,
        "effective_from_ms": price.effective_from_ms, "source": price.source, "rates": price.rates,
    }  # fmt: skip


async def _complete_prices(book: PriceBook, facts: Sequence[Fact], source: PriceSource) -> list[Price]:
    """Ask the source for what was never priced; the answer, even a missing price, holds from the beginning of time."""
    added: list[Price] = []
    for fact in facts:
        key = price_key(fact.event)
        if key is not None and key not in book:
            at_ms = int(getattr(fact.event, "opened_at_ms", 0) or getattr(fact.event, "observed_at_ms", 0))
            quote = await source.quote(key, at_ms)
            price = Price(key, 0, quote.source, quote.rates)
            book.add(price)
            added.append(price)
    return added


async def _save(connection: AsyncConnection, book: Book, numbered: int, posted_at_ms: int) -> None:
    changed = book.changed
    accounts = [asdict(row) for key, row in sorted(book.accounts.items()) if key in changed]
    await insert_rows(connection, sql.accounts, accounts, conflict=overwrite(sql.accounts, ["balance", "version"]))
    buckets = [asdict(row) for key, row in sorted(book.buckets.items()) if key in changed]
    await insert_rows(connection, sql.buckets, buckets, conflict=overwrite(sql.buckets, ["remaining"]))
    numbers = range(numbered + 1, numbered + 1 + len(book.transactions))
    written = list(zip(numbers, book.transactions, strict=True))
    await insert_rows(connection, sql.transactions, [_transaction_row(n, row, posted_at_ms) for n, row in written])
    lines = [
        {"transaction": number, "line": line, **asdict(posting)}
        for number, row in written
        for line, posting in enumerate(row.postings, start=1)
    ]
    await insert_rows(connection, sql.postings, lines)
    boots = [asdict(row) for key, row in book.boots.items() if key in changed]
    moving = [
        "seconds_total",
        "posted_seconds",
        "gap_seconds",
        "accrued_pico",
        "charged_micro",
        "final",
        "last_observed_ms",
    ]
    await insert_rows(connection, sql.boots, boots, conflict=overwrite(sql.boots, moving))
    calls = [asdict(row) for key, row in book.calls.items() if key in changed]
    settled = [field.name for field in fields(Call) if field.name not in {"call_id", "tenant"}]
    await insert_rows(connection, sql.calls, calls, conflict=overwrite(sql.calls, settled))
    sums = ["granted_micro", "burned_micro", "machine_seconds", "input_tokens", "output_tokens"]
    await _ensure_accounts(connection, book, changed)
    await insert_rows(
        connection, sql.usage, [asdict(row) for row in book.usage.values()], conflict=add_up(sql.usage, sums)
    )


async def _ensure_accounts(connection: AsyncConnection, book: Book, saved: set[object]) -> None:
    """Seconds too cheap to charge are counted too, so their tenant's account must exist."""
    names = {account_id for account_id, _ in book.usage} - {str(key) for key in saved}
    missing = [asdict(book.tenant_account(name.removeprefix("credits:"))) for name in sorted(names)]
    await insert_rows(connection, sql.accounts, missing, conflict="ON CONFLICT DO NOTHING")


def _transaction_row(number: int, row: Transaction, posted_at_ms: int) -> dict[str, Any]:
    return {
        "number": number, "id": row.id, "key": row.key, "kind": row.kind, "tenant": row.tenant,
        "account_id": row.account_id, "account_version": row.account_version, "amount": row.amount,
        "balance_after": row.balance_after, "reference": row.reference, "description": row.description,
        "at_ms": row.at_ms, "period": row.period, "event_id": row.event_id, "sequence": row.sequence,
        "details": row.details, "posted_at_ms": posted_at_ms,
    }  # fmt: skip


async def _save_events(
    connection: AsyncConnection, position: int, facts: Sequence[Fact], applied: Sequence[Applied]
) -> None:
    rows = [
        {
            "position": number, "event_id": fact.event_id, "type": fact.event.message_type(),
            "tenant": fact.event.tenant, "sequence": fact.sequence, "outcome": result.outcome, "reason": result.reason,
        }
        for number, (fact, result) in enumerate(zip(facts, applied, strict=True), start=position + 1)
    ]  # fmt: skip
    await insert_rows(connection, sql.events, rows)
