"""Users, claims, operations, idempotency keys, and the read models of instances and runs."""

import sqlalchemy as sa
from alembic import op
from hatchery_common.migrate import create_common_tables
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_common_tables()
    _people()
    _operations()
    _views()


def _text(name: str, *, key: bool = False, nullable: bool = False, unique: bool = False) -> sa.Column:
    return sa.Column(name, sa.String, primary_key=key, nullable=nullable, unique=unique)


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _people() -> None:
    op.create_table(
        "users",
        _text("user_id", key=True),
        _text("tenant", unique=True),
        sa.Column("access_enabled", sa.Boolean, nullable=False),
        _text("pepper", nullable=True),
        _time("created_ms"),
    )
    op.create_table(
        "claims",
        _text("tenant", key=True),
        _text("name", key=True),
        _text("instance_id", unique=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False),
        _time("created_ms"),
    )
    op.create_table(
        "idempotency",
        _text("tenant", key=True),
        _text("route", key=True),
        _text("key", key=True),
        _text("body_hash"),
        sa.Column("refs", JSONB, nullable=True),
        _time("created_ms"),
        sa.Index("idempotency_age", "created_ms"),
    )


def _operations() -> None:
    op.create_table(
        "operations",
        _text("operation_id", key=True),
        _text("tenant"),
        _text("instance_id"),
        _text("name"),
        _text("kind"),
        sa.Column("generation", sa.BigInteger, nullable=False),
        _text("state"),
        _time("created_ms"),
        _time("deadline_ms"),
        _time("updated_ms"),
        _time("ended_ms", nullable=True),
        _time("overdue_ms", nullable=True),
        _text("reason", nullable=True),
        _text("message", nullable=True),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Index("operations_newest", "instance_id", "generation"),
        sa.Index("operations_due", "deadline_ms", postgresql_where=sa.text("ended_ms IS NULL AND overdue_ms IS NULL")),
    )
    op.create_table(
        "operation_events",
        _text("operation_id", key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        _text("type"),
        _time("at_ms"),
        sa.Column("data", JSONB, nullable=False),
    )


def _views() -> None:
    op.create_table(
        "instances",
        _text("instance_id", key=True),
        _text("tenant"),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("state", JSONB, nullable=False),
        sa.Index("ix_instances_tenant", "tenant"),
    )
    op.create_table(
        "runs",
        _text("run_id", key=True),
        _text("tenant"),
        _text("thread_id"),
        _text("instance_id"),
        _text("status"),
        sa.Column("attempt", sa.Integer, nullable=False),
        _time("created_ms"),
        _time("updated_ms"),
        _text("code", nullable=True),
    )


def downgrade() -> None:
    for table in ("runs", "instances", "operation_events", "operations", "idempotency", "claims", "users"):
        op.drop_table(table)
