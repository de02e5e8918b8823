"""Runs that wait for their instance are parked as rows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("due_at", sa.DateTime(timezone=True)))
    op.add_column("runs", sa.Column("woken_at", sa.DateTime(timezone=True)))
    op.add_column("runs", sa.Column("began_at_ms", sa.BigInteger))
    op.add_column("runs", sa.Column("cause", JSONB))
    op.create_index("runs_parked", "runs", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("runs_parked")
    for column in ("due_at", "woken_at", "began_at_ms", "cause"):
        op.drop_column("runs", column)
