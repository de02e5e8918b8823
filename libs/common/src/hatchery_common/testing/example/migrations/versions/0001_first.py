"""The first tables."""

import sqlalchemy as sa
from alembic import op

from hatchery_common.migrate import create_common_tables, create_suspects_and_streams

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_common_tables()
    create_suspects_and_streams()
    op.create_table("notes", sa.Column("tenant", sa.Text, primary_key=True), sa.Column("opened", sa.Integer))
