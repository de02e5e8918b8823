"""The quarantine of a service, as rows of its own schema."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from hatchery_common.database import Database, quarantine


class SqlQuarantine:
    """Keeps whose handling began and did not end; raises DependencyUnavailable when Postgres does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, message_id: str) -> int:
        """Record a beginning, committed before it returns; how many there are without an end, this one included."""
        row = insert(quarantine).values(message_id=message_id)
        row = row.on_conflict_do_update(
            index_elements=[quarantine.c.message_id], set_={"begun": quarantine.c.begun + 1, "at": sa.func.now()}
        )
        async with self._database.unit_of_work() as work:
            return int((await work.connection.execute(row.returning(quarantine.c.begun))).scalar_one())

    async def leave(self, message_id: str) -> None:
        """Forget it; safe to repeat."""
        async with self._database.unit_of_work() as work:
            await work.connection.execute(quarantine.delete().where(quarantine.c.message_id == message_id))
