"""Machine time: charged as the difference of cumulative totals per boot."""

from __future__ import annotations

from hatchery_common.contracts.instances import InstanceMetered

from hatchery_billing.domain.accounts import AccountKind
from hatchery_billing.domain.book import Applied, Book, Fact, Outcome, TransactionKind
from hatchery_billing.domain.credits import lapse, spend
from hatchery_billing.domain.prices import Price, PriceKey, PriceKind
from hatchery_billing.domain.rating import machine_cost
from hatchery_billing.domain.usage import Boot


def machine_key(event: InstanceMetered) -> PriceKey:
    """What prices this machine."""
    return PriceKey(PriceKind.MACHINE, event.size)


def apply_metered(book: Book, fact: Fact, event: InstanceMetered) -> Applied:
    """Charge the seconds above the boot's highest total so far; totals may come late, twice or with gaps between."""
    key = (event.instance_id, event.boot_id)
    boot = book.boots.get(key) or Boot(event.instance_id, event.boot_id, event.tenant, event.size)
    if boot.tenant != event.tenant:
        return Applied(Outcome.REFUSED, f"boot {event.boot_id} belongs to another tenant")
    if event.seconds_total < boot.seconds_total:
        return Applied(Outcome.STALE)
    if event.seconds_total == boot.seconds_total and book.boots.get(key) is not None:
        return _note(book, boot, event)
    price = book.prices.at(machine_key(event), event.observed_at_ms)
    if price is None or price.rates is None:
        return Applied(
            Outcome.UNPRICED, f"machine size {event.size} has no price"
        )  # the next total charges these seconds too
    book.boots[key] = boot
    return _charge(book, fact, event, boot, price)


def _note(book: Book, boot: Boot, event: InstanceMetered) -> Applied:
    """The same total again: only the gap or the end may be new."""
    known = event.gap_seconds <= boot.gap_seconds and event.final <= boot.final
    boot.gap_seconds = max(boot.gap_seconds, event.gap_seconds)
    boot.final = boot.final or event.final
    book.changed.add((boot.instance_id, boot.boot_id))
    return Applied(Outcome.DUPLICATE if known else Outcome.NOTED)


def _charge(book: Book, fact: Fact, event: InstanceMetered, boot: Boot, price: Price) -> Applied:
    assert price.rates is not None
    seconds = event.seconds_total - boot.seconds_total
    boot.accrued_pico += seconds * int(price.rates["second"])
    amount = machine_cost(boot.accrued_pico) - boot.charged_micro
    boot.seconds_total = event.seconds_total
    boot.gap_seconds = max(boot.gap_seconds, event.gap_seconds)
    boot.final = boot.final or event.final
    boot.last_observed_ms = max(boot.last_observed_ms, event.observed_at_ms)
    boot.charged_micro += amount
    book.changed.add((boot.instance_id, boot.boot_id))
    used = book.usage_of(event.tenant, event.observed_at_ms)
    used.machine_seconds += seconds
    used.burned_micro += amount
    if amount == 0:
        return Applied(Outcome.NOTED)
    lapse(book, fact, event.tenant, event.observed_at_ms)
    details = {
        "boot_id": event.boot_id,
        "size": event.size,
        "from_seconds": boot.posted_seconds,
        "to_seconds": boot.seconds_total,
        "gap_seconds": boot.gap_seconds,
        "price_id": price.id,
    }
    book.post(
        fact, TransactionKind.MACHINE_TIME, f"machine:{event.instance_id}:{event.boot_id}:{event.seconds_total}",
        spend(book, event.tenant, amount, AccountKind.REVENUE_MACHINE, event.observed_at_ms),
        reference=event.instance_id, description=f"{boot.seconds_total - boot.posted_seconds} s of a {event.size} machine",
        at_ms=event.observed_at_ms, details=details,
    )  # fmt: skip
    boot.posted_seconds = boot.seconds_total
    return Applied(Outcome.POSTED)
