"""Facts about money, reported by billing, and its summary query. All amounts are integers of micro-USD."""

from __future__ import annotations

from pydantic import Field

from hatchery_common.contracts.base import Event, Model, Rpc


class AccountOpened(Event):
    """The tenant's account exists."""

    aggregate = "account"
    verb = "opened"
    key = "tenant"

    opened_at_ms: int


class CreditsGranted(Event):
    """Credits were granted, once for each (grant, period): the fact from which `rebuild` posts them again."""

    aggregate = "account"
    verb = "credits_granted"
    key = "tenant"

    grant: str  # e.g. "monthly"
    period: str  # e.g. "2026-11"
    amount_micro: int = Field(gt=0)
    granted_at_ms: int
    expires_at_ms: int | None = None


class LedgerPosted(Event):
    """A transaction was committed; `version` is the account's, `balance_micro` the balance after it."""

    aggregate = "ledger"
    verb = "posted"
    key = "tenant"

    transaction_id: str
    transaction_kind: str  # grant, grant_expired, machine_time, model_usage, usage_unknown
    amount_micro: int  # signed, as seen from the tenant's balance
    balance_micro: int
    version: int
    reference: str
    posted_at_ms: int


class UsageUnknown(Event):
    """A model call was opened and never recorded within 15 minutes: a named line and an alert, never silence."""

    aggregate = "ledger"
    verb = "usage_unknown"
    key = "tenant"

    call_id: str
    instance_id: str
    opened_at_ms: int
    noticed_at_ms: int


class SummaryRequest(Model):
    """Ask for a tenant's balance and its latest lines."""

    tenant: str
    limit: int = Field(default=20, ge=1, le=200)


class LedgerLine(Model):
    """One transaction as its owner sees it."""

    transaction_id: str
    kind: str
    amount_micro: int
    posted_at_ms: int
    reference: str
    description: str


class SummaryResponse(Model):
    """Balance, this period's grant and burn, and the latest lines, newest first."""

    tenant: str
    opened: bool
    currency: str = "USD"
    balance_micro: int = 0
    period: str | None = None
    granted_micro: int = 0
    burned_micro: int = 0
    machine_seconds: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown_calls: int = 0
    transactions: int = 0
    lines: tuple[LedgerLine, ...] = ()


SUMMARY: Rpc[SummaryRequest, SummaryResponse] = Rpc("billing", "summary", SummaryRequest, SummaryResponse)
EVENTS: tuple[type[Event], ...] = (AccountOpened, CreditsGranted, LedgerPosted, UsageUnknown)
