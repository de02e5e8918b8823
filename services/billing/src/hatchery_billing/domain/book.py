"""The book: the accounts, buckets, boots and calls that some events concern, and the transactions they cause.

It is a pure fold: the same events in the same order give the same transactions, whether they come in one batch or one by
one, live or in a rebuild.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hatchery_common.contracts.base import Event
from hatchery_common.ids import base32

from hatchery_billing.domain.accounts import Account, AccountKind, Bucket, credits_of, system_account
from hatchery_billing.domain.periods import period_of
from hatchery_billing.domain.prices import PriceBook
from hatchery_billing.domain.usage import Boot, Call, PeriodUsage


class Outcome(StrEnum):
    """What an event did to the ledger."""

    POSTED = "posted"  # it caused a transaction
    NOTED = "noted"  # it changed what we know, no money moved
    STALE = "stale"  # a newer fact is already in
    DUPLICATE = "duplicate"  # the same fact is already in, under another event id
    CONFLICT = "conflict"  # another fact is in under the same key; the first one stands
    UNPRICED = "unpriced"  # there is no price for it
    REFUSED = "refused"  # it contradicts itself or names another tenant's call


class TransactionKind(StrEnum):
    """Why money moved (or, for usage_unknown, why a line says that it did not)."""

    GRANT = "grant"
    GRANT_EXPIRED = "grant_expired"
    MACHINE_TIME = "machine_time"
    MODEL_USAGE = "model_usage"
    USAGE_UNKNOWN = "usage_unknown"


@dataclass(frozen=True)
class Fact:
    """An event on its way into the ledger."""

    event_id: str
    sequence: int
    event: Event


@dataclass(frozen=True)
class Applied:
    """What became of a fact: `reason` is kept with the event; `alert` is told to a person once, where counts are missing."""

    outcome: Outcome
    reason: str | None = None
    alert: str | None = None


@dataclass(frozen=True)
class Posting:
    """One line of a transaction; without a bucket it is credit that no grant covers (a debt when negative)."""

    account_id: str
    amount: int
    bucket_id: str | None = None


@dataclass(frozen=True)
class Transaction:
    """A balanced set of postings; `amount` is how it changed the tenant's balance. `key` can exist once, for ever."""

    key: str
    kind: TransactionKind
    tenant: str
    account_id: str
    account_version: int
    amount: int
    balance_after: int
    reference: str
    description: str
    at_ms: int
    event_id: str
    sequence: int
    details: dict[str, Any]
    postings: tuple[Posting, ...]

    @property
    def id(self) -> str:
        """Derived from the key, so a rebuild gives the same."""
        return f"txn_{base32(hashlib.sha256(self.key.encode()).digest())[:26]}"

    @property
    def period(self) -> str:
        """The month its event belongs to."""
        return period_of(self.at_ms)


@dataclass
class Book:
    """The working set of one batch; what changed is named in `changed`, new transactions stand in `transactions`."""

    accounts: dict[str, Account] = field(default_factory=dict[str, Account])
    buckets: dict[str, Bucket] = field(default_factory=dict[str, Bucket])
    boots: dict[tuple[str, str], Boot] = field(default_factory=dict[tuple[str, str], Boot])
    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    prices: PriceBook = field(default_factory=PriceBook)
    usage: dict[tuple[str, str], PeriodUsage] = field(default_factory=dict[tuple[str, str], PeriodUsage])
    transactions: list[Transaction] = field(default_factory=list[Transaction])
    changed: set[object] = field(default_factory=set[object])

    def tenant_account(self, tenant: str) -> Account:
        """The tenant's account, made when it is not there yet."""
        account_id = credits_of(tenant)
        if account_id not in self.accounts:
            self.accounts[account_id] = Account(account_id, AccountKind.TENANT_CREDITS, tenant)
        return self.accounts[account_id]

    def own_account(self, kind: AccountKind) -> Account:
        """One of our own accounts."""
        return self.accounts.setdefault(kind.value, system_account(kind))

    def buckets_of(self, account_id: str) -> list[Bucket]:
        """A tenant's buckets in consumption order."""
        return sorted((row for row in self.buckets.values() if row.account_id == account_id), key=lambda row: row.order)

    def usage_of(self, tenant: str, at_ms: int) -> PeriodUsage:
        """The increments of the tenant's period that holds this moment."""
        key = (credits_of(tenant), period_of(at_ms))
        return self.usage.setdefault(key, PeriodUsage(*key))

    def post(
        self,
        fact: Fact,
        kind: TransactionKind,
        key: str,
        postings: Sequence[Posting],
        *,
        reference: str,
        description: str,
        at_ms: int,
        details: dict[str, Any] | None = None,
    ) -> Transaction:
        """Write one transaction and move its balances and buckets."""
        if sum(line.amount for line in postings) != 0:
            msg = f"the postings of {key} do not balance"
            raise ArithmeticError(msg)
        tenant = fact.event.tenant
        account = self.tenant_account(tenant)
        for line in postings:
            self._move(line)
        account.version += 1
        self.changed.add(account.id)
        written = Transaction(
            key, kind, tenant, account.id, account.version,
            sum(line.amount for line in postings if line.account_id == account.id), account.balance,
            reference, description, at_ms, fact.event_id, fact.sequence, details or {}, tuple(postings),
        )  # fmt: skip
        self.transactions.append(written)
        return written

    def _move(self, line: Posting) -> None:
        if line.account_id not in self.accounts:
            self.own_account(AccountKind(line.account_id))
        self.accounts[line.account_id].balance += line.amount
        self.changed.add(line.account_id)
        if line.bucket_id is not None:
            self.buckets[line.bucket_id].remaining += line.amount
            self.changed.add(line.bucket_id)
