"""The ledger as it stands at one moment, for as long as an audit takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from hatchery_common.database import translated
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

SCHEMA = "billing"


@asynccontextmanager
async def snapshot(database_url: str, what: str) -> AsyncGenerator[AsyncConnection]:
    """A connection in one REPEATABLE READ transaction, rolled back at the end; raises DependencyUnavailable with `what`.

    A connection of its own: a service's gives a statement 30 seconds, and a check reads a whole table.
    """
    engine = create_async_engine(
        database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
        connect_args={"timeout": 10, "server_settings": {"search_path": SCHEMA}},
    )
    try:
        with translated(what):
            async with engine.connect() as connection:
                await connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
                yield connection
                await connection.rollback()
    finally:
        await engine.dispose()
