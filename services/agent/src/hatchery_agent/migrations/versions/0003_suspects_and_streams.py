"""Messages delivered too often are handled alone; a stream that was lost is known by its creation."""

from hatchery_common.migrate import create_suspects_and_streams, drop_suspects_and_streams

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_suspects_and_streams()


def downgrade() -> None:
    drop_suspects_and_streams()
