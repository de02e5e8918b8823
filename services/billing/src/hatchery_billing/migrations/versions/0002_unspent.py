"""Calls that failed at the provider before it spent anything have a state of their own."""

from alembic import op

revision = "0002"
down_revision = "0001"

_BEFORE = "state IN ('opened','recorded','unknown','unpriced','refused')"
_AFTER = "state IN ('opened','recorded','unknown','unpriced','refused','unspent')"


def upgrade() -> None:
    op.execute(f"ALTER TABLE calls DROP CONSTRAINT calls_state, ADD CONSTRAINT calls_state CHECK ({_AFTER})")


def downgrade() -> None:
    # The code before it knew no such call: an unpriced one is what it charged nothing for.
    op.execute("UPDATE calls SET state = 'unpriced' WHERE state = 'unspent'")
    op.execute(f"ALTER TABLE calls DROP CONSTRAINT calls_state, ADD CONSTRAINT calls_state CHECK ({_BEFORE})")
