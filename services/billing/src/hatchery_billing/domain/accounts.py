"""The chart of accounts, and grants as buckets within a tenant's account."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AccountKind(StrEnum):
    """What an account stands for."""

    TENANT_CREDITS = "tenant_credits"
    REVENUE_MACHINE = "revenue_machine"
    REVENUE_MODEL = "revenue_model"
    GRANTS_ISSUED = "grants_issued"
    GRANTS_EXPIRED = "grants_expired"


SYSTEM_KINDS = tuple(kind for kind in AccountKind if kind is not AccountKind.TENANT_CREDITS)


def credits_of(tenant: str) -> str:
    """The id of a tenant's account."""
    return f"credits:{tenant}"


@dataclass
class Account:
    """An account with its running balance; `version` counts its transactions (tenants' accounts only)."""

    id: str
    kind: AccountKind
    tenant: str | None = None
    balance: int = 0
    held: int = 0  # the sum of open holds, once there are holds; nothing writes it yet
    version: int = 0
    suspended: bool = False  # the place for suspension; nothing sets or reads it yet

    @property
    def available(self) -> int:
        """What may still be promised."""
        return self.balance - self.held


def system_account(kind: AccountKind) -> Account:
    """One of our own accounts; its id is its kind."""
    return Account(id=kind.value, kind=kind)


@dataclass
class Bucket:
    """One grant's credits: what was granted and what of it is left."""

    id: str
    account_id: str
    grant: str
    period: str
    priority: int
    granted: int
    remaining: int
    expires_at_ms: int | None

    @property
    def order(self) -> tuple[int, float, str]:
        """Consumption order: priority, then what lapses first, then id."""
        return (self.priority, float("inf") if self.expires_at_ms is None else self.expires_at_ms, self.id)

    def spendable_at(self, at_ms: int) -> bool:
        """Whether it holds credits that have not lapsed."""
        return self.remaining > 0 and (self.expires_at_ms is None or at_ms < self.expires_at_ms)


def bucket_id(tenant: str, grant: str, period: str) -> str:
    """The id of the one bucket that a (tenant, grant, period) can have."""
    return f"{tenant}:{grant}:{period}"
