"""The users that a machine's gateway and controller run as, where they share our addresses."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = ("endpoint_uid", "controller_uid")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("machines", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("machines", name)
