"""The fold, by properties: any order, any repetition, any split gives the same money; and the rules of rating, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hatchery_billing.domain.accounts import AccountKind
from hatchery_billing.domain.book import Applied, Book, Fact, Outcome
from hatchery_billing.domain.fold import apply
from hatchery_billing.domain.money import PICO_PER_MICRO, rate_in_pico, round_half_even
from hatchery_billing.domain.periods import period_end_ms, period_of
from hatchery_billing.domain.prices import Price, PriceBook, PriceKey, PriceKind
from hatchery_billing.domain.rating import rate_call
from hatchery_billing.domain.usage import CallState
from hatchery_common.contracts.base import Event
from hatchery_common.contracts.billing import CreditsGranted, UsageUnknown
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.contracts.instances import InstanceMetered
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_793_500_000_000
SECOND_RATE = 1_370_001  # pico-USD: does not divide a micro
RATES = {"input": [[0, 2_500_000], [500, 3_333_333]], "output": [[0, 10_001_000]], "cached": [[0, 300_001]]}
MACHINE = PriceKey(PriceKind.MACHINE, "standard")
MODEL = PriceKey(PriceKind.MODEL, "acme/big")


def new_book() -> Book:
    prices = [Price(MACHINE, 0, "test", {"second": SECOND_RATE}), Price(MODEL, 0, "test", RATES)]
    return Book(prices=PriceBook(prices))


def fold(events: Sequence[Event], book: Book | None = None) -> tuple[Book, list[Applied]]:
    book = book or new_book()
    results: list[Applied] = []
    for number, event in enumerate(events, start=1):
        results.append(apply(book, Fact(f"evt_{number}", number, event)))
        assert_sound(book)
    return book, results


def assert_sound(book: Book) -> None:
    assert sum(account.balance for account in book.accounts.values()) == 0
    for transaction in book.transactions[-3:]:
        assert sum(line.amount for line in transaction.postings) == 0
    for bucket in book.buckets.values():
        assert 0 <= bucket.remaining <= bucket.granted
    for account in book.accounts.values():
        if account.kind is AccountKind.TENANT_CREDITS:
            left = sum(bucket.remaining for bucket in book.buckets_of(account.id))
            assert account.balance == left or (account.balance < 0 and left == 0)


def money(book: Book) -> dict[str, Any]:
    """What must not depend on the order: every balance, what is left of all grants, each boot and each call."""
    return {
        "accounts": {key: row.balance for key, row in book.accounts.items() if row.balance},
        "left": sum(bucket.remaining for bucket in book.buckets.values()),
        "granted": {key: row.granted for key, row in book.buckets.items()},
        "boots": {key: (row.seconds_total, row.charged_micro) for key, row in book.boots.items() if row.seconds_total},
        "calls": {key: (row.state, row.amount_micro) for key, row in book.calls.items()},
    }


def granted(tenant: str, grant: str, period: str) -> CreditsGranted:
    amount = 1 + hash_of(tenant + grant + period) % 3_000
    return CreditsGranted(tenant=tenant, grant=grant, period=period, amount_micro=amount, granted_at_ms=START)


def metered(tenant: str, boot: str, seconds: int, **more: Any) -> InstanceMetered:
    given_ = {"instance_id": f"ins_{tenant}", "observed_at_ms": START + seconds, **more}
    return InstanceMetered(tenant=tenant, boot_id=boot, seconds_total=seconds, **given_)


def opened(tenant: str, call: str) -> UsageOpened:
    return UsageOpened(
        tenant=tenant, call_id=f"{tenant}-{call}", instance_id="i", machine_id="m", provider="acme", model="big",
        opened_at_ms=START,
    )  # fmt: skip


def recorded(tenant: str, call: str, **more: Any) -> UsageRecorded:
    tokens = hash_of(tenant + call) % 1_000
    fields: dict[str, Any] = {
        "call_id": f"{tenant}-{call}", "instance_id": "i", "machine_id": "m", "provider": "acme", "model": "big",
        "outcome": UsageOutcome.COMPLETED, "input_tokens": tokens, "output_tokens": tokens // 3,
        "cached_tokens": tokens // 5, "opened_at_ms": START, "ended_at_ms": START + 5,
    }  # fmt: skip
    return UsageRecorded(tenant=tenant, **(fields | more))


def unknown(tenant: str, call: str) -> UsageUnknown:
    return UsageUnknown(
        tenant=tenant, call_id=f"{tenant}-{call}", instance_id="i", opened_at_ms=START, noticed_at_ms=START + 900_000
    )


def hash_of(text: str) -> int:
    """Some number that follows from the text, the same in every process."""
    return sum(position * ord(letter) * 7919 for position, letter in enumerate(text, start=1))


TENANTS = st.sampled_from(["ta", "tb"])
CALLS = st.sampled_from(["c1", "c2", "c3"])
EVENTS = st.one_of(
    st.builds(granted, TENANTS, st.sampled_from(["monthly", "promo"]), st.sampled_from(["2026-11", "2026-12"])),
    st.builds(metered, TENANTS, st.sampled_from(["b1", "b2"]), st.integers(0, 5_000)),
    st.builds(opened, TENANTS, CALLS),
    st.builds(recorded, TENANTS, CALLS),
    st.builds(unknown, TENANTS, CALLS),
)
STREAMS = st.lists(EVENTS, max_size=25)


@settings(max_examples=150, deadline=None)
@given(STREAMS, st.randoms(use_true_random=False), st.data())
def test_any_order_and_any_repetition_gives_the_same_money(events: list[Event], random: Any, data: st.DataObject):
    expected = money(fold(events)[0])
    repeated = [*events, *(data.draw(st.lists(st.sampled_from(events), max_size=10)) if events else [])]
    random.shuffle(repeated)
    assert money(fold(repeated)[0]) == expected


@settings(max_examples=100, deadline=None)
@given(STREAMS)
def test_balances_equal_an_oracle_that_knows_no_ledger(events: list[Event]):
    book, _ = fold(events)
    for tenant in ("ta", "tb"):
        own = [event for event in events if event.tenant == tenant]
        grants = {(e.grant, e.period): e.amount_micro for e in own if isinstance(e, CreditsGranted)}
        boots: dict[str, int] = {}
        for event in own:
            if isinstance(event, InstanceMetered):
                boots[event.boot_id] = max(boots.get(event.boot_id, 0), event.seconds_total)
        calls = {e.call_id: cost_of(e) for e in own if isinstance(e, UsageRecorded)}
        machine = sum(seconds * SECOND_RATE // PICO_PER_MICRO for seconds in boots.values())
        assert book.tenant_account(tenant).balance == sum(grants.values()) - machine - sum(calls.values())


def cost_of(event: UsageRecorded) -> int:
    entry = Decimal("3.333333") if event.input_tokens > 500 else Decimal("2.5")
    exact = (
        (event.input_tokens - event.cached_tokens) * entry
        + event.cached_tokens * Decimal("0.300001")
        + event.output_tokens * Decimal("10.001")
    )
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=30))
def test_no_split_of_machine_time_changes_its_cost(totals: list[int]):
    rising = sorted(set(totals))
    split, _ = fold([metered("ta", "b1", total) for total in rising])
    whole, _ = fold([metered("ta", "b1", rising[-1])])
    assert money(split) == money(whole)
    spans = [(t.details["from_seconds"], t.details["to_seconds"]) for t in split.transactions]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans)][: len(spans)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(0, 40)), max_size=25))
def test_the_ledger_stays_sound_while_grants_lapse(steps: list[tuple[Event, int]]):
    day = 86_400_000
    events = [
        event.model_copy(
            update={"granted_at_ms": START + at * day, "expires_at_ms": START + (at + 10) * day}
            if isinstance(event, CreditsGranted)
            else {
                name: START + at * day for name in ("observed_at_ms", "ended_at_ms") if name in type(event).model_fields
            }
        )
        for event, at in steps
    ]
    fold(events)  # asserts after each step


@given(st.integers(0, 10**15))
def test_rounding_is_half_to_even(pico: int):
    assert round_half_even(pico) == round(Fraction(pico, PICO_PER_MICRO))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_charge_and_its_remainder_are_exact(fresh: int, cached: int, output: int):
    rates = {"input": [[0, 2_500_001]], "output": [[0, 10_000_003]], "cached": [[0, 7]]}
    charge = rate_call(rates, input_tokens=fresh + cached, cached_tokens=cached, output_tokens=output)
    exact = fresh * 2_500_001 + output * 10_000_003 + cached * 7
    assert charge.amount_micro * PICO_PER_MICRO + charge.remainder_pico == exact
    assert abs(charge.remainder_pico) * 2 <= PICO_PER_MICRO


def test_a_tier_prices_all_tokens_of_a_call_beyond_it():
    at = rate_call(RATES, input_tokens=500, cached_tokens=0, output_tokens=0)
    beyond = rate_call(RATES, input_tokens=501, cached_tokens=0, output_tokens=0)
    assert (at.amount_micro, beyond.amount_micro) == (1250, 1670)


def test_rates_keep_twelve_places():
    assert rate_in_pico(Decimal("0.0000005")) == 0  # half to even
    assert rate_in_pico(Decimal("2.5")) == 2_500_000


def test_a_price_holds_from_its_moment_on():
    key = PriceKey(PriceKind.MODEL, "acme/new")
    book = PriceBook([Price(key, 0, "a", {"n": 1}), Price(key, 100, "b", None), Price(key, 200, "c", {"n": 3})])
    found = [book.at(key, at_ms) for at_ms in (0, 99, 100, 199, 200)]
    assert [price and price.source for price in found] == ["a", "a", None, None, "c"]


def test_a_call_costs_what_held_when_it_was_opened():
    book = new_book()
    dearer = {name: [[0, 9_000_000]] for name in ("input", "output", "cached")}
    book.prices.add(Price(MODEL, START + 1, "test", dearer))
    fold([recorded("ta", "c", ended_at_ms=START + 60_000), recorded("ta", "d", opened_at_ms=START + 1)], book)
    early, late = book.transactions
    assert -early.amount == cost_of(recorded("ta", "c"))
    assert -late.amount > cost_of(recorded("ta", "d"))


def test_gaps_are_listed_and_not_billed():
    book, _ = fold(
        [metered("ta", "b1", 60), metered("ta", "b1", 60, gap_seconds=300), metered("ta", "b1", 120, gap_seconds=300)]
    )
    boot = book.boots["ins_ta", "b1"]
    assert (boot.seconds_total, boot.gap_seconds) == (120, 300)
    assert book.transactions[-1].details["gap_seconds"] == 300


def test_each_boot_counts_from_zero():
    book, _ = fold([metered("ta", "b1", 600), metered("ta", "b2", 60), metered("ta", "b1", 600, final=True)])
    assert [-t.amount for t in book.transactions] == [600 * SECOND_RATE // 10**6, 60 * SECOND_RATE // 10**6]
    assert book.boots["ins_ta", "b1"].final


def test_grants_are_spent_by_priority_then_by_lapse_and_a_debt_is_repaid_first():
    soon = granted("ta", "promo", "2026-12").model_copy(update={"amount_micro": 100, "expires_at_ms": START + 10**9})
    later = granted("ta", "monthly", "2026-11").model_copy(update={"amount_micro": 1_000})
    book, _ = fold([recorded("ta", "c", input_tokens=12, output_tokens=0, cached_tokens=0), later, soon])
    assert {row.grant: row.remaining for row in book.buckets.values()} == {"monthly": 970, "promo": 100}  # 30 were owed
    fold([recorded("ta", "d", input_tokens=60, output_tokens=0, cached_tokens=0)], book)
    assert {row.grant: row.remaining for row in book.buckets.values()} == {"monthly": 920, "promo": 0}


def test_what_is_left_lapses_with_the_next_grant():
    end = period_end_ms("2026-11")
    november = CreditsGranted(
        tenant="ta", grant="monthly", period="2026-11", amount_micro=500, granted_at_ms=START, expires_at_ms=end
    )
    december = november.model_copy(update={"period": "2026-12", "granted_at_ms": end, "expires_at_ms": None})
    book, _ = fold([november, metered("ta", "b1", 100), december])
    assert [(t.kind, t.amount) for t in book.transactions] == [
        ("grant", 500), ("machine_time", -137), ("grant_expired", -363), ("grant", 500),
    ]  # fmt: skip
    assert book.tenant_account("ta").balance == 500


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (recorded("ta", "c"), Outcome.DUPLICATE),
        (recorded("ta", "c", output_tokens=9_999), Outcome.CONFLICT),
        (recorded("tb", "c", call_id="ta-c"), Outcome.REFUSED),
        (unknown("ta", "c"), Outcome.STALE),
        (opened("ta", "c"), Outcome.STALE),
    ],
)
def test_a_settled_call_stays_as_it_is(second: Event, outcome: Outcome):
    book, results = fold([recorded("ta", "c"), second])
    assert results[-1].outcome is outcome
    assert len(book.transactions) == 1


def test_another_amount_under_the_same_grant_is_a_conflict():
    first = granted("ta", "monthly", "2026-11")
    book, results = fold([first, first.model_copy(update={"amount_micro": first.amount_micro + 1})])
    assert results[-1].outcome is Outcome.CONFLICT
    assert book.tenant_account("ta").balance == first.amount_micro


def test_a_record_without_counts_is_an_unknown_line_and_counts_may_still_follow():
    silent = recorded("ta", "c", usage_known=False, input_tokens=0, output_tokens=0, cached_tokens=0)
    book, results = fold([opened("ta", "c"), silent, silent, unknown("ta", "c")])
    assert [result.outcome for result in results[1:]] == [Outcome.POSTED, Outcome.DUPLICATE, Outcome.STALE]
    assert book.calls["ta-c"].state is CallState.UNKNOWN
    fold([recorded("ta", "c")], book)
    assert [t.kind for t in book.transactions] == ["usage_unknown", "model_usage"]


@pytest.mark.parametrize("month", range(1, 13))
def test_a_period_ends_where_the_next_begins(month: int):
    end = period_end_ms(f"2026-{month:02d}")
    assert period_of(end - 1) == f"2026-{month:02d}"
    assert period_of(end) != f"2026-{month:02d}"
