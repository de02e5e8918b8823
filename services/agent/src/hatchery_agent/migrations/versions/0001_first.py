"""Threads with leases, runs, submitted texts, checkpoints."""

import sqlalchemy as sa
from alembic import op
from hatchery_common.migrate import create_common_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_common_tables()
    _create_threads()
    _create_runs()
    _create_texts_and_checkpoints()


def _create_threads() -> None:
    op.create_table(
        "threads",
        sa.Column("thread_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("instance_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("session_key", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.Column("last_run_id", sa.Text),
        sa.Column("last_run_status", sa.Text),
        sa.Column("quiet_sequence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_fence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
    )
    op.create_index("threads_by_use", "threads", ["tenant", "updated_at_ms", "thread_id"])


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("thread_id", sa.Text, sa.ForeignKey("threads.thread_id"), nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("code", sa.Text),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("first_text_ms", sa.BigInteger),
        sa.Column("duration_ms", sa.BigInteger),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("status IN ('accepted', 'running', 'finished', 'failed')", name="runs_status"),
    )
    op.create_index("runs_open", "runs", ["thread_id"], postgresql_where=sa.text("status IN ('accepted', 'running')"))


def _create_texts_and_checkpoints() -> None:
    op.create_table(
        "pending_texts",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("text_sequence", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("checkpoints", "pending_texts", "runs", "threads"):
        op.drop_table(table)
