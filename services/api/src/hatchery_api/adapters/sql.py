"""The api's store on Postgres: SQLAlchemy Core on the hot paths, one transaction for each intent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.base import Message
from hatchery_common.database import Database, UnitOfWork
from sqlalchemy.ext.asyncio import AsyncConnection

from hatchery_api.adapters.sql_operations import SqlOperations
from hatchery_api.adapters.sql_people import SqlClaims, SqlKeys, SqlUsers
from hatchery_api.adapters.sql_views import SqlInstances, SqlRuns


class SqlReads:
    """The api's rows over one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.users = SqlUsers(connection)
        self.claims = SqlClaims(connection)
        self.operations = SqlOperations(connection)
        self.keys = SqlKeys(connection)
        self.instances = SqlInstances(connection)
        self.runs = SqlRuns(connection)


class SqlWork(SqlReads):
    """The api's rows in one transaction."""

    def __init__(self, work: UnitOfWork) -> None:
        super().__init__(work.connection)
        self._work = work

    async def first_delivery(self) -> bool:
        """False when an earlier transaction already had this delivery's effect."""
        return await self._work.first_delivery()

    async def emit(self, message: Message, *, id: str | None = None) -> str:  # noqa: A002
        """Queue a message for publication with this transaction."""
        return await self._work.emit(message, id=id)


class SqlStore:
    """Opens looks and transactions on the api's schema."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[SqlReads]:
        """A look; raises DependencyUnavailable when Postgres does not answer."""
        async with self._database.connect() as connection:
            yield SqlReads(connection)

    @asynccontextmanager
    async def begin(self, cause: Delivery[Any] | None = None, *, epoch: int | None = None) -> AsyncGenerator[SqlWork]:
        """A transaction; committed when the block ends."""
        async with self._database.unit_of_work(cause, epoch=epoch) as work:
            yield SqlWork(work)
