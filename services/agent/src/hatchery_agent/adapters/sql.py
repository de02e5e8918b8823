"""The agent's tables in Postgres: threads with their lease, submitted texts, runs, checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from hatchery_common.database import common_tables
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

OPEN = ("accepted", "running")
_TIME: Any = sa.DateTime(timezone=True)  # SQLModel's annotation knows types only, not their instances


class Row(SQLModel, registry=registry()):
    """Base of the agent's rows: a registry of its own, so that services in one process never mix their tables."""


class ThreadRow(Row, table=True):
    """A thread; its lease; `quiet_sequence` is where folding its log may start."""

    __tablename__ = "threads"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (sa.Index("threads_by_use", "tenant", "updated_at_ms", "thread_id"),)

    thread_id: str = Field(primary_key=True, sa_type=sa.Text)
    tenant: str = Field(sa_type=sa.Text)
    instance_id: str = Field(sa_type=sa.Text)
    title: str | None = Field(default=None, sa_type=sa.Text)
    kind: str = Field(default="openclaw", sa_type=sa.Text)
    session_key: str = Field(sa_type=sa.Text)
    created_at_ms: int = Field(sa_type=sa.BigInteger)
    updated_at_ms: int = Field(sa_type=sa.BigInteger)
    last_run_id: str | None = Field(default=None, sa_type=sa.Text)
    last_run_status: str | None = Field(default=None, sa_type=sa.Text)
    quiet_sequence: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})
    lease_fence: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})
    lease_holder: str | None = Field(default=None, sa_type=sa.Text)
    lease_expires_at: datetime | None = Field(default=None, sa_type=_TIME)


class RunRecord(Row, table=True):
    """A run; its log entries are the truth, this row follows them. While it is parked the row is its job."""

    __tablename__ = "runs"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (
        sa.CheckConstraint("status IN ('accepted', 'running', 'finished', 'failed')", name="runs_status"),
        sa.Index("runs_open", "thread_id", postgresql_where=sa.text("status IN ('accepted', 'running')")),
        sa.Index("runs_parked", "due_at", postgresql_where=sa.text("due_at IS NOT NULL")),
    )

    run_id: str = Field(primary_key=True, sa_type=sa.Text)
    tenant: str = Field(sa_type=sa.Text)
    thread_id: str = Field(foreign_key="threads.thread_id", sa_type=sa.Text)
    message_id: str = Field(sa_type=sa.Text)
    status: str = Field(default="accepted", sa_type=sa.Text)
    attempt: int = Field(default=0, sa_type=sa.Integer, sa_column_kwargs={"server_default": "0"})
    code: str | None = Field(default=None, sa_type=sa.Text)
    created_at_ms: int = Field(sa_type=sa.BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    first_text_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    duration_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    input_tokens: int | None = Field(default=None, sa_type=sa.BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=sa.BigInteger)
    touched_at: datetime | None = Field(
        default=None,
        sa_type=_TIME,
        nullable=False,
        sa_column_kwargs={"server_default": sa.func.now()},
    )
    due_at: datetime | None = Field(default=None, sa_type=_TIME)  # set: the row is the run's job, see Parking
    woken_at: datetime | None = Field(default=None, sa_type=_TIME)
    began_at_ms: int | None = Field(default=None, sa_type=sa.BigInteger)
    cause: dict[str, Any] | None = Field(default=None, sa_type=JSONB)


class PendingText(Row, table=True):
    """A submitted message's text until the log holds it."""

    __tablename__ = "pending_texts"  # pyright: ignore[reportAssignmentType]

    run_id: str = Field(primary_key=True, foreign_key="runs.run_id", ondelete="CASCADE", sa_type=sa.Text)
    text: str = Field(sa_type=sa.Text)


class CheckpointRow(Row, table=True):
    """How far the latest attempt of a run came."""

    __tablename__ = "checkpoints"  # pyright: ignore[reportAssignmentType]

    run_id: str = Field(primary_key=True, foreign_key="runs.run_id", ondelete="CASCADE", sa_type=sa.Text)
    attempt: int = Field(sa_type=sa.Integer)
    accepted: bool = Field(sa_type=sa.Boolean)
    text_sequence: int = Field(sa_type=sa.BigInteger)
    fence: int = Field(sa_type=sa.BigInteger)


metadata: sa.MetaData = Row.metadata
common_tables(metadata)


def _table(model: type[Row]) -> sa.Table:
    return cast("sa.Table", model.__table__)  # pyright: ignore[reportAttributeAccessIssue]


threads = _table(ThreadRow)
runs = _table(RunRecord)
pending_texts = _table(PendingText)
checkpoints = _table(CheckpointRow)
