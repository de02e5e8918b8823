"""Messages delivered too often are handled alone, and their beginnings kept."""

from hatchery_common.migrate import create_quarantine, drop_quarantine

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_quarantine()


def downgrade() -> None:
    drop_quarantine()
