"""Machine time over a change of its price."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hatchery_billing.domain.book import Book, Fact
from hatchery_billing.domain.fold import apply
from hatchery_billing.domain.prices import Price, PriceBook, PriceKey, PriceKind
from hatchery_common.contracts.instances import InstanceMetered

KEY = PriceKey(PriceKind.MACHINE, "standard")
CHANGE_MS = 1_000_000


def cost(*readings: InstanceMetered) -> int:
    """What they cost in this order: a micro-USD a second before the change, two from then on."""
    prices = [Price(KEY, 0, "test", {"second": 10**6}), Price(KEY, CHANGE_MS, "test", {"second": 2 * 10**6})]
    book = Book(prices=PriceBook(prices))
    for number, reading in enumerate(readings, start=1):
        apply(book, Fact(f"evt_{number}", number, reading))
    return -book.tenant_account("ta").balance


@pytest.fixture
def readings(sample: Any) -> list[InstanceMetered]:
    return [
        sample.metered(total, observed_at_ms=CHANGE_MS + at_ms)
        for total, at_ms in ((60, -1), (120, 59_999), (180, 119_999))
    ]


def test_what_a_report_adds_costs_what_holds_when_it_is_observed(readings: list[InstanceMetered]):
    first, second, third = readings
    assert cost(first, second, third) == 60 * 1 + 60 * 2 + 60 * 2
    assert cost(first, third) == 60 * 1 + 120 * 2


def test_a_report_overtaken_over_a_change_leaves_its_seconds_to_the_later_price(readings: list[InstanceMetered]):
    first, second, third = readings
    assert cost(second, first, third) == 180 * 2


def test_the_order_of_reports_on_one_side_of_a_change_does_not_matter(readings: list[InstanceMetered]):
    first, second, third = readings
    assert {cost(first, *later) for later in permutations((second, third))} == {cost(first, third)}
