"""A sixth, tiny service for the tests of the common library: opens accounts and notes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa

from hatchery_common.bus.delivery import Delivery, Subscription
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.database import Database, common_tables
from hatchery_common.service import Parts, Service, ServiceContext

metadata = sa.MetaData()
common_tables(metadata)
notes = sa.Table("notes", metadata, sa.Column("tenant", sa.Text, primary_key=True), sa.Column("opened", sa.Integer))


async def open_account(delivery: Delivery[Any], *, database: Database) -> None:
    """Note the account and report it, once for each delivery's id."""
    async with database.unit_of_work(delivery) as work:
        if not await work.first_delivery():
            return
        tenant = delivery.message.tenant
        await work.connection.execute(
            sa.text("INSERT INTO notes VALUES (:t, 1) ON CONFLICT (tenant) DO UPDATE SET opened = notes.opened + 1"),
            {"t": tenant},
        )
        await work.emit(AccountOpened(tenant=tenant, opened_at_ms=0))


@asynccontextmanager
async def _open(context: ServiceContext) -> AsyncGenerator[Parts]:
    async def handle(delivery: Delivery[Any]) -> None:
        await open_account(delivery, database=context.database)

    yield Parts(subscriptions=(Subscription(OpenAccount, handle),))


service = Service(
    name="example",
    open=_open,
    consumes=(OpenAccount,),
    produces=(AccountOpened,),
    schema="example",
    migrations="hatchery_common.testing.example.migrations",
)
