"""Calls that failed at the provider before it spent anything: known, free, and no line in the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import permutations
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.audit import rebuild, verify
from hatchery_billing.domain.book import Book, Fact, Outcome
from hatchery_billing.domain.fold import apply
from hatchery_billing.domain.prices import Price, PriceBook, PriceKey, PriceKind
from hatchery_billing.domain.usage import CallState
from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.base import Event
from hatchery_common.contracts.billing import SummaryRequest
from hatchery_common.contracts.gateways import UsageOutcome, UsageRecorded
from hatchery_common.database import Database

NOW = 1_793_600_000_000
RATES = {"input": [[0, 2_500_000]], "output": [[0, 10_001_000]], "cached": [[0, 300_001]]}


def book() -> Book:
    return Book(prices=PriceBook([Price(PriceKey(PriceKind.MODEL, "acme/big"), 0, "test", RATES)]))


def failed(sample: Any, call: str, **more: Any) -> UsageRecorded:
    return sample.recorded(call, tokens=0, **({"outcome": UsageOutcome.FAILED, "output_tokens": 0} | more))


def fold(*events: Event) -> tuple[Book, list[Outcome]]:
    made = book()
    return made, [apply(made, Fact(f"evt_{n}", n, event)).outcome for n, event in enumerate(events, start=1)]


@pytest.mark.parametrize("model", ["big", "without-a-price"])
def test_a_failed_call_without_tokens_is_noted_and_nothing_more(sample: Any, model: str):
    made, outcomes = fold(sample.opened("c"), failed(sample, "c", model=model), failed(sample, "c", model=model))
    assert outcomes == [Outcome.NOTED, Outcome.NOTED, Outcome.DUPLICATE]
    assert (made.calls["c"].state, made.calls["c"].amount_micro) == (CallState.UNSPENT, None)
    assert made.transactions == []
    assert made.usage == {}


def test_whatever_order_its_facts_come_in_it_costs_nothing(sample: Any):
    for events in permutations((sample.opened("c"), failed(sample, "c"), sample.unknown("c"))):
        made, _ = fold(*events)
        assert made.calls["c"].state is CallState.UNSPENT
        assert {row.kind for row in made.transactions} <= {"usage_unknown"}
        assert all(row.amount == 0 for row in made.transactions)


def test_what_a_failed_call_did_spend_is_charged(sample: Any):
    made, outcomes = fold(sample.recorded("c", tokens=1000, outcome=UsageOutcome.FAILED))
    assert outcomes == [Outcome.POSTED]
    assert made.transactions[0].amount == -2600


@pytest.mark.parametrize("outcome", [UsageOutcome.COMPLETED, UsageOutcome.INTERRUPTED])
def test_only_a_failed_call_can_have_spent_nothing(sample: Any, outcome: UsageOutcome):
    made, outcomes = fold(failed(sample, "c", outcome=outcome))
    assert outcomes == [Outcome.POSTED]
    assert made.calls["c"].state is CallState.RECORDED


def test_a_failed_call_whose_counts_nobody_knows_stays_unknown(sample: Any):
    made, _ = fold(sample.opened("c"), failed(sample, "c", usage_known=False))
    assert made.calls["c"].state is CallState.UNKNOWN


def test_counts_that_come_after_it_are_a_conflict(sample: Any):
    made, outcomes = fold(failed(sample, "c"), sample.recorded("c", tokens=1000))
    assert outcomes == [Outcome.NOTED, Outcome.CONFLICT]
    assert made.transactions == []


async def test_a_name_that_nothing_is_charged_for_gets_no_price(ledger: SqlLedger, database: Database, sample: Any):
    invented = [
        failed(sample, "c1", model="invented-1"),
        failed(sample, "c2", model="invented-2", usage_known=False),
        sample.recorded("c3", model="invented-3", usage_known=False),
        failed(sample, "c4", model="answered", output_tokens=1),
    ]
    await ledger.apply([sample.delivery(event) for event in invented], posted_at_ms=NOW)
    async with database.connect() as connection:
        assert list((await connection.execute(sa.text("SELECT name FROM prices"))).scalars()) == ["acme/answered"]


async def test_in_the_ledger_it_leaves_no_line_and_no_noise(ledger: SqlLedger, database: Database, sample: Any):
    events: list[Event] = [sample.recorded("paid"), *(sample.opened(f"c{n}") for n in range(3))]
    events += [*(failed(sample, f"c{n}", model="without-a-price") for n in range(2)), failed(sample, "c2")]
    deliveries = [sample.delivery(event) for event in events]
    report = await ledger.apply(deliveries, posted_at_ms=NOW)
    assert (report.outcomes, report.unsound) == ({Outcome.POSTED: 1, Outcome.NOTED: 6}, ())
    async with database.connect() as connection:
        states = (await connection.execute(sa.text("SELECT DISTINCT state FROM calls"))).scalars().all()
    assert sorted(states) == ["recorded", "unspent"]
    summary = await ledger.summarise(SummaryRequest(tenant="ta"), period="2026-11")
    assert (summary.balance_micro, summary.unknown_calls, summary.transactions) == (-2600, 0, 1)
    verified = await verify(database.url)
    assert verified.findings == ()

    async def stream() -> AsyncIterator[Delivery[Any]]:
        for delivery in deliveries:
            yield delivery

    rebuilt = await rebuild(database.url, stream())
    assert (rebuilt.findings, rebuilt.replayed, rebuilt.transactions) == ((), len(deliveries), 1)
