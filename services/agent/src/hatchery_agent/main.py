"""The agent service: owner of threads and runs. The only place that names its adapters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import httpx
from hatchery_common.bus import Subscription
from hatchery_common.contracts.instances import (
    InstanceDeleted,
    InstanceEvent,
    InstanceFailed,
    InstanceStarted,
    InstanceStopped,
)
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    GET_THREAD,
    LIST_THREADS,
    SUBMIT_MESSAGE,
    PostMessage,
    RunFailed,
    RunFinished,
    RunStarted,
)
from hatchery_common.owner import Ownership
from hatchery_common.service import OwnerLoop, Parts, RpcHandler, Service, ServiceContext
from hatchery_common.settings import key, load

from hatchery_agent.adapters.runtime import ProxyTurns
from hatchery_agent.adapters.sql_parking import SqlParking
from hatchery_agent.adapters.sql_runs import SqlRuns
from hatchery_agent.adapters.sql_threads import SqlLeases, SqlThreads
from hatchery_agent.handlers.parked import ParkedRuns, wake_runs
from hatchery_agent.handlers.runs import answer_message
from hatchery_agent.handlers.sweeps import end_dead_run, sweep
from hatchery_agent.handlers.threads import create_thread, get_thread, list_threads, submit_message
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.handlers.workbench import RunTools
from hatchery_agent.settings import AgentSettings

_SWEEP_S = 60.0
_NEWS: tuple[type[InstanceEvent], ...] = (InstanceStarted, InstanceStopped, InstanceFailed, InstanceDeleted)


@asynccontextmanager
async def open_agent(context: ServiceContext) -> AsyncGenerator[Parts]:
    """Build the adapters, bind the handlers."""
    settings = load(AgentSettings, context.environment)
    secret = key(context.environment, "runtime-service")
    limits = httpx.Limits(max_connections=2 * settings.concurrency + 4)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
        rows = SqlRuns(context.database, context.clock)
        tools = _tools(context, settings, rows, ProxyTurns(client, settings.runtime_url, secret))
        threads = SqlThreads(context.database, context.clock)
        yield Parts(
            subscriptions=_subscriptions(tools, settings),
            rpcs=(
                RpcHandler(CREATE_THREAD, partial(create_thread, threads=threads)),
                RpcHandler(GET_THREAD, partial(get_thread, threads=threads)),
                RpcHandler(LIST_THREADS, partial(list_threads, threads=threads)),
                RpcHandler(SUBMIT_MESSAGE, partial(submit_message, threads=threads)),
            ),
            loops=(ParkedRuns(tools, context.log, limit=2 * settings.concurrency).run,),
            owner_loops=(_sweeping(rows, tools, settings, context),),
            on_dead=partial(end_dead_run, rows=rows, tools=tools, log=context.log),
        )


def _tools(context: ServiceContext, settings: AgentSettings, rows: SqlRuns, runtime: ProxyTurns) -> RunTools:
    return RunTools(
        log=context.bus.threads,
        leases=SqlLeases(context.database, settings.lease_s),
        runs=rows,
        parking=SqlParking(context.database),
        runtime=runtime,
        clock=context.clock,
        slots=asyncio.Semaphore(settings.concurrency),
        limits=TurnLimits(settings.turn_deadline_s, settings.start_deadline_s, settings.recovery_s),
        lease_s=settings.lease_s,
        max_attempts=settings.max_attempts,
    )


def _subscriptions(tools: RunTools, settings: AgentSettings) -> tuple[Subscription, ...]:
    horizon_s = settings.start_deadline_s + 60  # clocks differ a little
    news = partial(wake_runs, parking=tools.parking, wake=tools.wake, clock=tools.clock, horizon_s=horizon_s)
    posted = Subscription(PostMessage, partial(answer_message, tools=tools))
    return (posted, *(Subscription(message, news) for message in _NEWS))


def _sweeping(rows: SqlRuns, tools: RunTools, settings: AgentSettings, context: ServiceContext) -> OwnerLoop:
    stale_s = int(2 * settings.turn_deadline_s + settings.start_deadline_s)

    async def loop(ownership: Ownership) -> None:
        # No epoch is needed on what it writes: ends are fenced by the thread's lease, deletions repeat harmlessly.
        del ownership
        began = time.monotonic()
        while True:
            await sweep(
                rows=rows,
                tools=tools,
                orphan_text_s=settings.orphan_text_s,
                stale_s=stale_s,
                owned_s=time.monotonic() - began,
                log=context.log,
            )
            await asyncio.sleep(_SWEEP_S)

    return loop


service = Service(
    name="agent",
    open=open_agent,
    settings=(AgentSettings,),
    consumes=(PostMessage, *_NEWS),
    produces=(RunStarted, RunFinished, RunFailed),
    serves=(CREATE_THREAD, GET_THREAD, LIST_THREADS, SUBMIT_MESSAGE),
    schema="agent",
    migrations="hatchery_agent.migrations",
    reads_threads=True,
    writes_threads=True,
    secrets=("runtime-service",),
)
