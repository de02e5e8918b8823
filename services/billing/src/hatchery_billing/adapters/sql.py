"""The tables of billing. Amounts are bigint micro-USD; what must hold stands here as constraints, not only in Python.

The name of the module is the technology's; reads and writes are in ledger.py and books.py beside it.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import sqlalchemy as sa
from hatchery_common.database import common_tables
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """Billing's own registry: other services have tables of the same names."""


class AccountRow(Base, table=True):
    """A tenant's credits or one of our own accounts, with its running balance.

    Holds belong here: the sum of a tenant's open holds goes to `held`, and the floor becomes one conditional UPDATE on
    `balance - held`. `suspended` waits for the limits. Neither is written yet.
    """

    __tablename__: ClassVar[Any] = "accounts"
    __table_args__ = (
        sa.CheckConstraint("(kind = 'tenant_credits') = (tenant IS NOT NULL)", name="accounts_tenant"),
        sa.CheckConstraint(
            "kind IN ('tenant_credits','revenue_machine','revenue_model','grants_issued','grants_expired')",
            name="accounts_kind",
        ),
        sa.CheckConstraint("held >= 0", name="accounts_held"),
        sa.CheckConstraint("version >= 0", name="accounts_version"),
    )

    id: str = Field(primary_key=True)
    kind: str
    tenant: str | None = Field(default=None, unique=True)
    balance: int = Field(sa_type=sa.BigInteger)
    held: int = Field(default=0, sa_type=sa.BigInteger)
    version: int = Field(default=0, sa_type=sa.BigInteger)
    suspended: bool = False
    opened_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)


class BucketRow(Base, table=True):
    """One grant's credits; its id is tenant:grant:period, so a period grants once."""

    __tablename__: ClassVar[Any] = "buckets"
    __table_args__ = (
        sa.UniqueConstraint("account_id", "grant", "period", name="buckets_once_a_period"),
        sa.CheckConstraint("remaining >= 0 AND remaining <= granted", name="buckets_remaining"),
        sa.Index("buckets_spendable", "account_id", postgresql_where=sa.text("remaining > 0")),
    )

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="accounts.id")
    grant: str
    period: str
    priority: int
    granted: int = Field(sa_type=sa.BigInteger)
    remaining: int = Field(sa_type=sa.BigInteger)
    expires_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)


class TransactionRow(Base, table=True):
    """A transaction; never updated, never deleted (a trigger refuses), its key unique for ever."""

    __tablename__: ClassVar[Any] = "transactions"
    __table_args__ = (
        sa.UniqueConstraint("account_id", "account_version", name="transactions_chain"),
        sa.Index("transactions_reference", "reference"),
    )

    number: int = Field(sa_column=sa.Column(sa.BigInteger, primary_key=True, autoincrement=False))
    id: str = Field(unique=True)
    key: str = Field(unique=True)
    kind: str
    tenant: str
    account_id: str = Field(foreign_key="accounts.id")
    account_version: int = Field(sa_type=sa.BigInteger)
    amount: int = Field(sa_type=sa.BigInteger)
    balance_after: int = Field(sa_type=sa.BigInteger)
    reference: str
    description: str
    at_ms: int = Field(sa_type=sa.BigInteger)
    period: str
    event_id: str
    sequence: int = Field(sa_type=sa.BigInteger)
    details: dict[str, Any] = Field(sa_column=sa.Column(JSONB, nullable=False))
    posted_at_ms: int = Field(sa_type=sa.BigInteger)


class PostingRow(Base, table=True):
    """One line of a transaction; those of one transaction sum to zero after every statement (a trigger checks)."""

    __tablename__: ClassVar[Any] = "postings"
    __table_args__ = (
        sa.CheckConstraint("amount <> 0", name="postings_amount"),
        sa.Index("postings_account", "account_id"),
        sa.Index("postings_bucket", "bucket_id", postgresql_where=sa.text("bucket_id IS NOT NULL")),
    )

    transaction: int = Field(
        sa_column=sa.Column(sa.BigInteger, sa.ForeignKey("transactions.number"), primary_key=True, autoincrement=False)
    )
    line: int = Field(sa_column=sa.Column(sa.SmallInteger, primary_key=True, autoincrement=False))
    account_id: str = Field(foreign_key="accounts.id")
    bucket_id: str | None = Field(default=None, foreign_key="buckets.id")
    amount: int = Field(sa_type=sa.BigInteger)


class BootRow(Base, table=True):
    """Cumulative seconds of one boot of a machine and what they have cost so far."""

    __tablename__: ClassVar[Any] = "boots"
    __table_args__ = (
        sa.CheckConstraint("posted_seconds >= 0 AND posted_seconds <= seconds_total", name="boots_seconds"),
        sa.CheckConstraint("charged_micro >= 0 AND charged_micro = accrued_pico / 1000000", name="boots_charged"),
    )

    instance_id: str = Field(primary_key=True)
    boot_id: str = Field(primary_key=True)
    tenant: str
    size: str
    seconds_total: int = Field(sa_type=sa.BigInteger)
    posted_seconds: int = Field(sa_type=sa.BigInteger)
    gap_seconds: int = Field(sa_type=sa.BigInteger)
    accrued_pico: int = Field(sa_type=sa.BigInteger)
    charged_micro: int = Field(sa_type=sa.BigInteger)
    final: bool
    last_observed_ms: int = Field(sa_type=sa.BigInteger)


class CallRow(Base, table=True):
    """A model call from opened to recorded or unknown; `noticed_at_ms` says that its silence was reported."""

    __tablename__: ClassVar[Any] = "calls"
    __table_args__ = (
        sa.CheckConstraint(
            "state IN ('opened','recorded','unknown','unpriced','refused','unspent')", name="calls_state"
        ),
        sa.CheckConstraint(
            "(state = 'recorded') = (amount_micro IS NOT NULL AND price_id IS NOT NULL)", name="calls_charged"
        ),
        sa.Index("calls_open", "opened_at_ms", postgresql_where=sa.text("state = 'opened'")),
        sa.Index("calls_uncharged", "tenant", postgresql_where=sa.text("state <> 'recorded'")),
    )

    call_id: str = Field(primary_key=True)
    tenant: str
    instance_id: str
    provider: str
    model: str
    state: str
    opened_at_ms: int = Field(sa_type=sa.BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    outcome: str | None = None
    input_tokens: int = Field(sa_type=sa.BigInteger)
    output_tokens: int = Field(sa_type=sa.BigInteger)
    cached_tokens: int = Field(sa_type=sa.BigInteger)
    amount_micro: int | None = Field(default=None, sa_type=sa.BigInteger)
    price_id: str | None = Field(default=None, foreign_key="prices.id")
    noticed_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)


class PriceRow(Base, table=True):
    """A price from a moment on; `rates` NULL: known to have none. Never changed, a new price is a new row."""

    __tablename__: ClassVar[Any] = "prices"
    __table_args__ = (sa.UniqueConstraint("kind", "name", "effective_from_ms", name="prices_one_at_a_time"),)

    id: str = Field(primary_key=True)
    kind: str
    name: str
    effective_from_ms: int = Field(sa_type=sa.BigInteger)
    source: str
    rates: dict[str, Any] | None = Field(default=None, sa_column=sa.Column(JSONB(none_as_null=True)))


class GrantRow(Base, table=True):
    """The decision to grant, made once for each (tenant, grant, period); the money moves when its event comes by."""

    __tablename__: ClassVar[Any] = "grants"
    __table_args__ = (sa.CheckConstraint("amount_micro > 0", name="grants_amount"),)

    tenant: str = Field(primary_key=True)
    grant: str = Field(primary_key=True)
    period: str = Field(primary_key=True)
    amount_micro: int = Field(sa_type=sa.BigInteger)
    expires_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    granted_at_ms: int = Field(sa_type=sa.BigInteger)


class UsageRow(Base, table=True):
    """What a tenant was granted and used in a period; a sum of its transactions, kept for the summary."""

    __tablename__: ClassVar[Any] = "usage"

    account_id: str = Field(primary_key=True, foreign_key="accounts.id")
    period: str = Field(primary_key=True)
    granted_micro: int = Field(sa_type=sa.BigInteger)
    burned_micro: int = Field(sa_type=sa.BigInteger)
    machine_seconds: int = Field(sa_type=sa.BigInteger)
    input_tokens: int = Field(sa_type=sa.BigInteger)
    output_tokens: int = Field(sa_type=sa.BigInteger)


class EventRow(Base, table=True):
    """An event that was applied, at which position, and what it did: the inbox of money, and the order for a rebuild."""

    __tablename__: ClassVar[Any] = "events"
    __table_args__ = (
        sa.Index("events_sequence", "sequence"),
        sa.Index("events_unsound", "outcome", postgresql_where=sa.text("outcome IN ('conflict','unpriced','refused')")),
    )

    position: int = Field(sa_column=sa.Column(sa.BigInteger, primary_key=True, autoincrement=False))
    event_id: str = Field(unique=True)
    type: str
    tenant: str
    sequence: int = Field(sa_type=sa.BigInteger)
    outcome: str
    reason: str | None = None


class CursorRow(Base, table=True):
    """How far a stream has been applied; its row lock makes batches one after the other."""

    __tablename__: ClassVar[Any] = "cursors"
    __table_args__ = (sa.CheckConstraint("position >= 0 AND transactions >= 0", name="cursors_counts"),)

    stream: str = Field(primary_key=True)
    last_sequence: int = Field(sa_type=sa.BigInteger)
    position: int = Field(sa_type=sa.BigInteger)
    transactions: int = Field(sa_type=sa.BigInteger)


def _table(model: type[SQLModel]) -> sa.Table:
    return cast("sa.Table", getattr(model, "__table__"))  # noqa: B009 - SQLModel does not declare it


accounts = _table(AccountRow)
buckets = _table(BucketRow)
transactions = _table(TransactionRow)
postings = _table(PostingRow)
boots = _table(BootRow)
calls = _table(CallRow)
prices = _table(PriceRow)
grants = _table(GrantRow)
usage = _table(UsageRow)
events = _table(EventRow)
cursors = _table(CursorRow)

metadata: sa.MetaData = Base.metadata
LEDGER_TABLES: tuple[sa.Table, ...] = (
    accounts, buckets, transactions, postings, prices, boots, calls, usage, events, cursors,
)  # fmt: skip
common_tables(metadata)
