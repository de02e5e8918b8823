"""The api's composition root: what it declares, and how its parts are put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from hatchery_common.bus import Subscription
from hatchery_common.clock import Clock
from hatchery_common.contracts import instances, operations, threads
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import SUMMARY
from hatchery_common.owner import Ownership
from hatchery_common.service import Listener, Parts, Service, ServiceContext
from hatchery_common.settings import load

from hatchery_api.adapters.changes import ProcessChanges
from hatchery_api.adapters.runtime import HttpRuntime
from hatchery_api.adapters.sql import SqlStore
from hatchery_api.adapters.tokens import WebsiteTokens
from hatchery_api.handlers import projections, sweeper
from hatchery_api.ports import Changes, Store
from hatchery_api.routes import Door, build_app
from hatchery_api.settings import ApiSettings

_FORGET_EVERY_S = 3600.0
_STEPS = (operations.InstanceStepStarted, operations.InstanceStepFinished)


@asynccontextmanager
async def open_api(context: ServiceContext) -> AsyncGenerator[Parts]:
    """Everything of the api, bound to the given bus, database and clock."""
    settings = load(ApiSettings, context.environment)
    store, changes = SqlStore(context.database), ProcessChanges()
    runtime = HttpRuntime(settings.runtime_url, bytes.fromhex(settings.runtime_service_key))
    door = Door(
        settings=settings,
        store=store,
        calls=context.bus,
        logs=context.bus.threads,
        runtime=runtime,
        tokens=_tokens(settings),
        changes=changes,
        clock=context.clock,
        log=context.log,
    )
    if settings.dev_mode:
        context.log.warning("api.dev_mode", user=settings.dev_user, host=settings.host)
    try:
        yield Parts(
            subscriptions=_subscriptions(store, changes),
            listeners=[Listener("api", build_app(door), settings.host, settings.port)],
            owner_loops=[partial(sweep, store=store, clock=context.clock, changes=changes)],
        )
    finally:
        await runtime.close()


def _tokens(settings: ApiSettings) -> WebsiteTokens:
    secrets = (settings.website_jwt_secret, settings.website_jwt_secret_previous)
    return WebsiteTokens(
        [secret for secret in secrets if secret is not None],
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        environment=settings.jwt_environment,
    )


def _subscriptions(store: Store, changes: Changes) -> list[Subscription]:
    """Which handler takes which event; one lane for each instance or run."""
    instance: Any = partial(projections.project_instance, store=store, changes=changes)
    step: Any = partial(projections.note_step, store=store, changes=changes)
    end: Any = partial(projections.end_operation, store=store, changes=changes)
    run: Any = partial(projections.project_run, store=store)
    taken = [(message, instance) for message in instances.STATUS_EVENTS.values()]
    taken += [(message, step) for message in _STEPS]
    taken += [(message, end) for message in operations.OPERATION_EVENTS]
    taken += [(message, run) for message in threads.EVENTS]
    return [Subscription(message, handler) for message, handler in taken]


async def sweep(ownership: Ownership, *, store: Store, clock: Clock, changes: Changes) -> None:
    """The owner's loop: marks overdue operations every few seconds, forgets old keys every hour."""
    forgotten_at = 0.0
    while True:
        await sweeper.mark_overdue(store=store, clock=clock, changes=changes, epoch=ownership.epoch)
        if time.monotonic() - forgotten_at > _FORGET_EVERY_S or not forgotten_at:
            await sweeper.forget_keys(store=store, clock=clock, epoch=ownership.epoch)
            forgotten_at = time.monotonic()
        await asyncio.sleep(sweeper.EVERY_S)


service = Service(
    name="api",
    open=open_api,
    settings=(ApiSettings,),
    consumes=(
        *instances.STATUS_EVENTS.values(),
        *_STEPS,
        *operations.OPERATION_EVENTS,
        *threads.EVENTS,
    ),
    produces=(*instances.COMMANDS, OpenAccount, *threads.COMMANDS),
    calls=(SUMMARY, threads.CREATE_THREAD, threads.GET_THREAD, threads.LIST_THREADS, threads.SUBMIT_MESSAGE),
    schema="api",
    migrations="hatchery_api.migrations",
    reads_threads=True,
    secrets=("website-jwt", "internal-api-key", "oa-internal-key", "runtime-service"),
)
