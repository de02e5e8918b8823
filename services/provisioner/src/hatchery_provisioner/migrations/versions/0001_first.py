"""Instances, machines, boots, leases, and the common tables."""

import sqlalchemy as sa
from alembic import op
from hatchery_common.migrate import create_common_tables
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _big(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def upgrade() -> None:
    create_common_tables()
    _create_instances()
    _create_machines()
    _create_boots()
    _create_leases()


def _create_instances() -> None:
    op.create_table(
        "instances",
        sa.Column("instance_id", sa.String(), primary_key=True),
        *(_text(name) for name in ("tenant", "name", "size", "driver", "desired", "status", "storage", "route_state")),
        *(_text(name, nullable=True) for name in ("stopped_by", "operation_id", "operation_verb", "reason", "message")),
        *(_text(name, nullable=True) for name in ("waiting_for", "gateway_version")),
        *(_big(name) for name in ("generation", "version", "since_ms", "route_version", "created_at_ms")),
        _big("updated_at_ms"),
        *(_big(name, nullable=True) for name in ("operation_generation", "deadline_ms", "ready_since_ms")),
        *(_big(name, nullable=True) for name in ("last_ready_at_ms", "not_before_ms", "next_at_ms")),
        *(_flag(name) for name in ("renew", "restarting", "failed", "ready", "degraded")),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("conditions", JSONB(), nullable=False),
    )
    op.create_index("ix_instances_tenant", "instances", ["tenant"])
    op.create_index(
        "instances_pending", "instances", ["next_at_ms"], postgresql_where=sa.text("next_at_ms IS NOT NULL")
    )


def _create_machines() -> None:
    op.create_table(
        "machines",
        sa.Column("machine_id", sa.String(), primary_key=True),
        *(_text(name) for name in ("instance_id", "stage", "power")),
        *(_text(name, nullable=True) for name in ("endpoint", "controller", "boot_id")),
        *(_big(name) for name in ("generation", "changed_at_ms")),
        sa.Column("state", JSONB(), nullable=False),
    )
    op.create_index("ix_machines_instance_id", "machines", ["instance_id"])
    op.create_index(
        "machines_one_live",
        "machines",
        ["instance_id"],
        unique=True,
        postgresql_where=sa.text("stage IN ('planned', 'created')"),
    )


def _create_boots() -> None:
    op.create_table(
        "boots",
        sa.Column("boot_id", sa.String(), primary_key=True),
        *(_text(name) for name in ("instance_id", "machine_id", "tenant", "size")),
        *(_big(name) for name in ("last_observed_ms", "counted_ms", "gap_ms", "published_ms")),
        _flag("final"),
    )
    op.create_index("boots_open", "boots", ["instance_id"], postgresql_where=sa.text("NOT final"))


def _create_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("instance_id", sa.String(), primary_key=True),
        sa.Column("port", sa.Integer(), nullable=False, unique=True),
        sa.Column("uid", sa.Integer(), nullable=True, unique=True),
    )
    op.create_table(
        "retired",
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        _big("until_ms"),
    )


def downgrade() -> None:
    for name in ("retired", "leases", "boots", "machines", "instances"):
        op.drop_table(name)
