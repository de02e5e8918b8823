"""The use cases of billing: open an account, apply events, grant by the clock, report silence, renew prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hatchery_common.bus.delivery import Delivery
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.accounts import OpenAccount
from structlog.typing import FilteringBoundLogger

from hatchery_billing.domain.periods import period_end_ms, period_of
from hatchery_billing.ports import Backlog, GrantDecision, Ledger
from hatchery_billing.settings import BillingSettings

MONTHLY = "monthly"
PORTION = 500  # rows of one transaction of a loop


def monthly_grant(settings: BillingSettings, now_ms: int) -> GrantDecision | None:
    """This month's grant; None when none is given."""
    if settings.monthly_grant_micro_usd == 0:
        return None
    period = period_of(now_ms)
    expires = period_end_ms(period) if settings.monthly_grant_expires else None
    return GrantDecision(MONTHLY, period, settings.monthly_grant_micro_usd, now_ms, expires)


async def open_account(
    delivery: Delivery[OpenAccount], *, ledger: Ledger, settings: BillingSettings, clock: Clock
) -> None:
    """Open the tenant's account with this month's grant; repeating it changes nothing."""
    now_ms = to_ms(clock.now())
    await ledger.open_account(delivery, opened_at_ms=now_ms, grant=monthly_grant(settings, now_ms))


async def apply_events(
    deliveries: Sequence[Delivery[Any]], *, ledger: Ledger, backlog: Backlog, clock: Clock, log: FilteringBoundLogger
) -> None:
    """Apply a batch; an event that cannot be charged is named, it never stops the others; neither does one without counts."""
    if not deliveries:
        return
    report = await ledger.apply(deliveries, posted_at_ms=to_ms(clock.now()))
    backlog.applied(deliveries)
    for event_id, outcome, reason in report.unsound:
        log.error("billing.event.unsound", event_id=event_id, outcome=outcome.value, reason=reason)
    for event_id, reason in report.unknown:
        log.error("billing.usage.unknown", calls=1, event_id=event_id, reason=reason)


async def grant_monthly(*, ledger: Ledger, settings: BillingSettings, clock: Clock, epoch: int) -> float | None:
    """Grant the month to every open account that lacks it; returns the seconds until the next month."""
    now_ms = to_ms(clock.now())
    decision = monthly_grant(settings, now_ms)
    if decision is None:
        return None
    while await ledger.grant_to_all(decision, epoch=epoch, limit=PORTION) == PORTION:
        pass
    return (period_end_ms(decision.period) - now_ms) / 1000


async def notice_unknown(
    *, ledger: Ledger, backlog: Backlog, settings: BillingSettings, clock: Clock, epoch: int, log: FilteringBoundLogger
) -> None:
    """Report calls that were opened and never recorded in time: an event and an alert, never silence.

    Time counts only as far as the stream is applied: after an outage a call's record may still wait there.
    """
    now_ms = to_ms(clock.now())
    complete_to_ms = await backlog.complete_to_ms(now_ms)
    if complete_to_ms is None:
        return
    before_ms = complete_to_ms - settings.unknown_after_s * 1000
    found = PORTION
    while found == PORTION:
        found = await ledger.notice_unknown(before_ms=before_ms, now_ms=now_ms, epoch=epoch, limit=PORTION)
        if found:
            log.error("billing.usage.unknown", calls=found)


async def renew_prices(*, ledger: Ledger, clock: Clock, epoch: int, log: FilteringBoundLogger) -> None:
    """Take over changed prices from settings and price list."""
    changed = await ledger.renew_prices(now_ms=to_ms(clock.now()), epoch=epoch)
    if changed:
        log.info("billing.prices.changed", prices=changed)
