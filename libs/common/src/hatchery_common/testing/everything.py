"""A service that consumes, produces, serves and calls, and small tools: for tests of the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from hatchery_common.bus.attempts import ConsumerSettings
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.base import Model, Rpc
from hatchery_common.contracts.billing import AccountOpened, LedgerPosted, UsageUnknown
from hatchery_common.service import Parts, Service, ServiceContext

QUICK = ConsumerSettings(
    ack_wait_s=1.0,
    max_deliveries=3,
    backoff_s=(0.02, 0.04),
    dependency_s=(0.02, 0.05),
    expires_s=2.0,
    heartbeat_s=0.5,
)


class Number(Model):
    """A request and a response."""

    n: int


DOUBLE: Rpc[Number, Number] = Rpc("everything", "double", Number, Number, timeout_ms=1000)


@asynccontextmanager
async def _open(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


def everything(**changes: Any) -> Service:
    """A service that consumes, produces, serves and calls; changes replace parts of its declaration."""
    declared: dict[str, Any] = {
        "consumes": (OpenAccount, AccountOpened),
        "produces": (OpenAccount, AccountOpened, LedgerPosted, UsageUnknown),
        "serves": (DOUBLE,),
        "calls": (DOUBLE,),
        "writes_routes": True,
        "writes_threads": True,
    }
    return Service("everything", _open, **{**declared, **changes})


def posted(tenant: str, number: int) -> LedgerPosted:
    """The tenant's transaction of that number."""
    return LedgerPosted(
        tenant=tenant,
        transaction_id=f"txn-{number}",
        transaction_kind="grant",
        amount_micro=number,
        balance_micro=number,
        version=number,
        reference="",
        posted_at_ms=0,
    )


async def until(true: Callable[[], Any], deadline_s: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(deadline_s):
        while not true():  # noqa: ASYNC110 - a test looks from outside, under a deadline
            await asyncio.sleep(0.01)


async def until_async(true: Callable[[], Awaitable[Any]], deadline_s: float = 10.0) -> None:
    """Wait until an asynchronous question is answered by yes."""
    async with asyncio.timeout(deadline_s):
        while not await true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
