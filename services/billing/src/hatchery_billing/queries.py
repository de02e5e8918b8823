"""The read side of billing."""

from __future__ import annotations

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.billing import SummaryRequest, SummaryResponse

from hatchery_billing.domain.periods import period_of
from hatchery_billing.ports import Ledger


async def summarise(request: SummaryRequest, *, ledger: Ledger, clock: Clock) -> SummaryResponse:
    """What the tenant has, was granted and used this month."""
    return await ledger.summarise(request, period=period_of(to_ms(clock.now())))
