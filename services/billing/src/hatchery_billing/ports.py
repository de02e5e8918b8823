"""What billing needs from the outside: a place for the ledger, and prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import SummaryRequest, SummaryResponse

from hatchery_billing.domain.book import Outcome
from hatchery_billing.domain.prices import PriceKey, Rates


@dataclass(frozen=True)
class GrantDecision:
    """A grant to be made to a tenant, once for its period."""

    grant: str
    period: str
    amount_micro: int
    granted_at_ms: int
    expires_at_ms: int | None = None


@dataclass(frozen=True)
class BatchReport:
    """What a batch did: new events by outcome, how many were known already, and what needs a person's eye."""

    outcomes: dict[Outcome, int]
    repeated: int
    unsound: tuple[tuple[str, Outcome, str], ...]  # event id, outcome, reason
    unknown: tuple[tuple[str, str], ...] = ()  # event id, and which call came without its counts


@dataclass(frozen=True)
class Quote:
    """What a source says of one price now; `rates` is None when it knows none."""

    source: str
    rates: Rates | None


class PriceSource(Protocol):
    """Where prices come from. It never raises for an unknown thing: then the quote has no rates."""

    async def quote(self, key: PriceKey, at_ms: int) -> Quote: ...


class Backlog(Protocol):
    """How far the ledger has come on the stream. Never raises: None means that nobody can say."""

    def applied(self, deliveries: Sequence[Delivery[Any]]) -> None: ...

    async def complete_to_ms(
        self, now_ms: int
    ) -> int | None: ...  # all that was published before this moment is applied


class Ledger(Protocol):
    """The ledger's place. Every call is one transaction and safe to repeat; raises DependencyUnavailable when it is away."""

    async def apply(self, deliveries: Sequence[Delivery[Any]], *, posted_at_ms: int) -> BatchReport: ...

    async def open_account(
        self, delivery: Delivery[OpenAccount], *, opened_at_ms: int, grant: GrantDecision | None
    ) -> None: ...

    async def grant_to_all(self, decision: GrantDecision, *, epoch: int, limit: int) -> int: ...

    async def notice_unknown(self, *, before_ms: int, now_ms: int, epoch: int, limit: int) -> int: ...

    async def renew_prices(self, *, now_ms: int, epoch: int) -> int: ...

    async def summarise(self, request: SummaryRequest, *, period: str) -> SummaryResponse: ...
