"""The composition root of billing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from hatchery_common.bus import BatchSubscription, Subscription
from hatchery_common.bus.registry import durable_name
from hatchery_common.contracts import billing as contracts
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.owner import Ownership
from hatchery_common.service import OpenedParts, OwnerLoop, Parts, RpcHandler, Service, ServiceContext
from hatchery_common.settings import load
from hatchery_common.timers import Wake, run_due

from hatchery_billing import handlers, queries
from hatchery_billing.adapters.backlog import BusBacklog
from hatchery_billing.adapters.ledger import SqlLedger
from hatchery_billing.adapters.prices import Prices
from hatchery_billing.domain.fold import MONEY_EVENTS
from hatchery_billing.settings import BillingSettings

_GRANTS_S = 30.0  # the longest sleep: how late after midnight a month's grant may be
_UNKNOWN_S = 5.0
_PRICES_S = 3_600.0


def _loop(work: Callable[[int], Awaitable[float | None]], idle_s: float) -> OwnerLoop:
    """An owner loop that does its work, then sleeps until it is due again, at most `idle_s`."""

    async def run(ownership: Ownership) -> None:
        await run_due(lambda: work(ownership.epoch), Wake(), idle_s=idle_s)

    return run


@asynccontextmanager
async def open_billing(context: ServiceContext) -> OpenedParts:
    """Bind handlers, loops and the query to the ledger."""
    settings = load(BillingSettings, context.environment)
    ledger = SqlLedger(context.database, Prices(settings))
    backlog = BusBacklog(context.bus.lag, f"EVT/{durable_name(context.name, batch=True)}")
    clock, log = context.clock, context.log

    async def grant(epoch: int) -> float | None:
        return await handlers.grant_monthly(ledger=ledger, settings=settings, clock=clock, epoch=epoch)

    async def notice(epoch: int) -> None:
        await handlers.notice_unknown(
            ledger=ledger, backlog=backlog, settings=settings, clock=clock, epoch=epoch, log=log
        )

    async def renew(epoch: int) -> None:
        await handlers.renew_prices(ledger=ledger, clock=clock, epoch=epoch, log=log)

    apply = partial(handlers.apply_events, ledger=ledger, backlog=backlog, clock=clock, log=log)
    yield Parts(
        subscriptions=(
            Subscription(OpenAccount, partial(handlers.open_account, ledger=ledger, settings=settings, clock=clock)),
        ),
        batches=(BatchSubscription(MONEY_EVENTS, apply),),
        rpcs=(RpcHandler(contracts.SUMMARY, partial(queries.summarise, ledger=ledger, clock=clock)),),
        owner_loops=(_loop(grant, _GRANTS_S), _loop(notice, _UNKNOWN_S), _loop(renew, _PRICES_S)),
    )


service = Service(
    name="billing",
    open=open_billing,
    settings=(BillingSettings,),
    consumes=(OpenAccount, *MONEY_EVENTS),
    batched=MONEY_EVENTS,
    produces=contracts.EVENTS,
    serves=(contracts.SUMMARY,),
    schema="billing",
    migrations="hatchery_billing.migrations",
)
