"""The use cases with a ledger that only notes what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hatchery_billing import handlers
from hatchery_billing.domain.book import Outcome
from hatchery_billing.ports import BatchReport, GrantDecision
from hatchery_billing.settings import BillingSettings
from hatchery_common.bus.delivery import Delivery
from hatchery_common.clock import FixedClock, to_ms
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import SummaryRequest, SummaryResponse
from structlog.testing import CapturingLogger

LAST_SECOND = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


class NotingLedger:
    """Notes calls; grants and silent calls come in the given portions."""

    def __init__(self, *portions: int) -> None:
        self.portions = list(portions)
        self.calls: list[tuple[str, Any]] = []
        self.report = BatchReport({}, 0, ())

    async def apply(self, deliveries: Sequence[Delivery[Any]], *, posted_at_ms: int) -> BatchReport:
        self.calls.append(("apply", posted_at_ms))
        return self.report

    async def open_account(
        self, delivery: Delivery[OpenAccount], *, opened_at_ms: int, grant: GrantDecision | None
    ) -> None:
        self.calls.append(("open", grant))

    async def grant_to_all(self, decision: GrantDecision, *, epoch: int, limit: int) -> int:
        self.calls.append(("grant", decision))
        return self.portions.pop(0)

    async def notice_unknown(self, *, before_ms: int, now_ms: int, epoch: int, limit: int) -> int:
        self.calls.append(("notice", now_ms - before_ms))
        return self.portions.pop(0)

    async def renew_prices(self, *, now_ms: int, epoch: int) -> int:
        return 0

    async def summarise(self, request: SummaryRequest, *, period: str) -> SummaryResponse:
        return SummaryResponse(tenant=request.tenant, opened=False, period=period)


class KnownBacklog:
    """All up to this long ago is applied; None: nobody can say."""

    def __init__(self, behind_ms: int | None = 0) -> None:
        self.behind_ms = behind_ms
        self.batches: list[int] = []

    def applied(self, deliveries: Sequence[Delivery[Any]]) -> None:
        self.batches.append(len(deliveries))

    async def complete_to_ms(self, now_ms: int) -> int | None:
        return None if self.behind_ms is None else now_ms - self.behind_ms


async def notice(ledger: NotingLedger, backlog: KnownBacklog, log: Any) -> None:
    clock, settings = FixedClock(LAST_SECOND), BillingSettings()
    await handlers.notice_unknown(ledger=ledger, backlog=backlog, settings=settings, clock=clock, epoch=1, log=log)


async def apply(ledger: NotingLedger, log: Any) -> None:
    backlog = KnownBacklog()
    await handlers.apply_events([Any], ledger=ledger, backlog=backlog, clock=FixedClock(LAST_SECOND), log=log)  # type: ignore[list-item]
    assert backlog.batches == [1]


async def test_a_month_is_granted_to_all_portions_and_the_loop_sleeps_until_the_next():
    ledger = NotingLedger(handlers.PORTION, handlers.PORTION, 3)
    settings = BillingSettings(monthly_grant_expires=True)
    seconds = await handlers.grant_monthly(ledger=ledger, settings=settings, clock=FixedClock(LAST_SECOND), epoch=1)
    assert seconds == 1.0
    assert len(ledger.calls) == 3
    decision = ledger.calls[0][1]
    assert (decision.grant, decision.period, decision.amount_micro) == ("monthly", "2026-11", 5_000_000)
    assert decision.expires_at_ms == to_ms(LAST_SECOND) + 1000


async def test_no_grant_is_made_where_none_is_set():
    ledger = NotingLedger()
    settings = BillingSettings(monthly_grant_micro_usd=0)
    clock = FixedClock(LAST_SECOND)
    assert await handlers.grant_monthly(ledger=ledger, settings=settings, clock=clock, epoch=1) is None
    await handlers.open_account(Any, ledger=ledger, settings=settings, clock=clock)  # type: ignore[arg-type]
    assert ledger.calls == [("open", None)]


async def test_silence_counts_from_fifteen_minutes_and_is_alerted():
    ledger, log = NotingLedger(handlers.PORTION, 2), CapturingLogger()
    await notice(ledger, KnownBacklog(), log)
    assert ledger.calls == [("notice", 900_000)] * 2
    assert [call.args for call in log.calls] == [("billing.usage.unknown",)] * 2


async def test_a_call_whose_record_may_still_wait_on_the_stream_is_not_silent():
    ledger, log = NotingLedger(0), CapturingLogger()
    await notice(ledger, KnownBacklog(behind_ms=60_000), log)
    await notice(ledger, KnownBacklog(behind_ms=None), log)
    assert ledger.calls == [("notice", 900_000 + 60_000)]
    assert log.calls == []


async def test_an_event_that_cannot_be_charged_is_named():
    ledger, log = NotingLedger(), CapturingLogger()
    ledger.report = BatchReport({Outcome.UNPRICED: 1}, 0, (("evt_1", Outcome.UNPRICED, "model x has no price"),))
    await apply(ledger, log)
    assert log.calls[0].kwargs == {"event_id": "evt_1", "outcome": "unpriced", "reason": "model x has no price"}


async def test_a_call_that_ended_without_counts_is_alerted_like_one_that_never_ended():
    ledger, log = NotingLedger(), CapturingLogger()
    ledger.report = BatchReport({Outcome.POSTED: 1}, 0, (), (("evt_1", "call c1 ended without counts"),))
    await apply(ledger, log)
    assert [(call.method_name, call.args) for call in log.calls] == [("error", ("billing.usage.unknown",))]
    assert log.calls[0].kwargs == {"calls": 1, "event_id": "evt_1", "reason": "call c1 ended without counts"}
