"""The api's tables, in its own schema. Times are milliseconds since 1970 UTC."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import sqlalchemy as sa
from hatchery_common.database import common_tables
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """Keeps these tables apart from those of other services in the same process."""


def _big() -> Any:
    return Field(sa_type=sa.BigInteger)


def _big_or_none() -> Any:
    return Field(default=None, sa_type=sa.BigInteger, nullable=True)


class UserRow(Base, table=True):
    """A person and their tenant; the mapping both ways."""

    __tablename__: ClassVar[Any] = "users"

    user_id: str = Field(primary_key=True)
    tenant: str = Field(unique=True)
    access_enabled: bool
    pepper: str | None = None
    created_ms: int = _big()


class ClaimRow(Base, table=True):
    """A tenant's hold on one instance name."""

    __tablename__: ClassVar[Any] = "claims"

    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    instance_id: str = Field(unique=True)
    generation: int = _big()
    deleting: bool = False
    created_ms: int = _big()


class OperationRow(Base, table=True):
    """One accepted intent."""

    __tablename__: ClassVar[Any] = "operations"
    __table_args__: ClassVar[Any] = (
        sa.Index("operations_newest", "instance_id", "generation"),
        sa.Index("operations_due", "deadline_ms", postgresql_where=sa.text("ended_ms IS NULL AND overdue_ms IS NULL")),
    )

    operation_id: str = Field(primary_key=True)
    tenant: str
    instance_id: str
    name: str
    kind: str
    generation: int = _big()
    state: str
    created_ms: int = _big()
    deadline_ms: int = _big()
    updated_ms: int = _big()
    ended_ms: int | None = _big_or_none()
    overdue_ms: int | None = _big_or_none()
    reason: str | None = None
    message: str | None = None
    last_event: int = 0


class OperationEventRow(Base, table=True):
    """One numbered line of an operation's progress."""

    __tablename__: ClassVar[Any] = "operation_events"

    operation_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    type: str
    at_ms: int = _big()
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)


class KeyRow(Base, table=True):
    """One Idempotency-Key and what it stands for."""

    __tablename__: ClassVar[Any] = "idempotency"
    __table_args__: ClassVar[Any] = (sa.Index("idempotency_age", "created_ms"),)

    tenant: str = Field(primary_key=True)
    route: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    body_hash: str
    refs: dict[str, Any] | None = Field(default=None, sa_type=JSONB, nullable=True)
    created_ms: int = _big()


class InstanceRow(Base, table=True):
    """The read model of one instance; deleted ones stay, so that late events cannot bring them back."""

    __tablename__: ClassVar[Any] = "instances"

    instance_id: str = Field(primary_key=True)
    tenant: str = Field(index=True)
    version: int = _big()
    state: dict[str, Any] = Field(sa_type=JSONB)


class RunRow(Base, table=True):
    """The read model of one run."""

    __tablename__: ClassVar[Any] = "runs"

    run_id: str = Field(primary_key=True)
    tenant: str
    thread_id: str
    instance_id: str
    status: str
    attempt: int
    created_ms: int = _big()
    updated_ms: int = _big()
    code: str | None = None


def _table(row: type[SQLModel]) -> sa.Table:
    return cast("sa.Table", getattr(row, "__table__"))  # noqa: B009 - SQLModel does not declare it


users = _table(UserRow)
claims = _table(ClaimRow)
operations = _table(OperationRow)
operation_events = _table(OperationEventRow)
keys = _table(KeyRow)
instances = _table(InstanceRow)
runs = _table(RunRow)
metadata = Base.metadata
common_tables(metadata)
