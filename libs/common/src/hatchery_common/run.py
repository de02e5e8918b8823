"""The runner: one service or several in one event loop, each under its own supervisor, with a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from hatchery_common.bus import Bus, OnDead, Trial
from hatchery_common.clock import SystemClock
from hatchery_common.database import Database
from hatchery_common.errors import DependencyUnavailable, HatcheryError, SettingsWrong
from hatchery_common.guard import ServiceFailed, guarded
from hatchery_common.health import Health
from hatchery_common.log import get_logger
from hatchery_common.migrate import version
from hatchery_common.outbox import Relay
from hatchery_common.owner import OwnerLock, Ownership
from hatchery_common.quarantine import SqlQuarantine
from hatchery_common.service import Check, Listener, Parts, Service, ServiceContext
from hatchery_common.settings import (
    DatabaseSettings,
    HealthSettings,
    NatsSettings,
    load,
    require_settings,
    service_environment,
)
from hatchery_common.web import serving

ORDER = ("api", "provisioner", "billing", "agent", "runtime-proxy")
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_WAIT_S = 1.0
_DRAIN_S = 10.0
_HEALTHY_AFTER_S = 30.0
_OUTBOX_AGE_S = 30.0


def installed_services() -> dict[str, Service]:
    """All services of this installation by name, in their customary order (entry points `hatchery.services`)."""
    found = {point.name: point for point in importlib.metadata.entry_points(group="hatchery.services")}
    names = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return {name: found[name].load() for name in names}


def health_port(settings: HealthSettings, name: str) -> int:
    """The port of a service's health listener: the base port plus its place in the customary order."""
    return settings.base_port + (ORDER.index(name) if name in ORDER else len(ORDER))


class Supervised:
    """One service under supervision: opened, run, restarted with back-off when it fails, drained at the end."""

    def __init__(self, service: Service, base: Mapping[str, str], stop: asyncio.Event) -> None:
        self.service = service
        self.health = Health(service.name, CollectorRegistry())
        self._base = base
        self._stop = stop
        self._failures = 0  # in a row; a life of some length begins anew
        self._has_run = False
        self._log = get_logger(service.name)

    async def run(self) -> None:
        """Serve health for the whole time, and the service as long as no stop is asked for."""
        settings = load(HealthSettings, self._base)
        listener = Listener(
            f"{self.service.name} health",
            self.health.application(),
            settings.host,
            health_port(settings, self.service.name),
        )
        async with serving(listener):
            while not self._stop.is_set():
                await self._one_life()

    async def _one_life(self) -> None:
        try:
            self.health.set("starting", "opening")
            try:
                await guarded(self._open_and_run(), self.service.name)
            finally:
                self.health.checks = ()  # they ask what is closed by now
        except Exception as error:
            if isinstance(error, SettingsWrong) and not (self._has_run or self.health.restarts):
                raise  # no repetition cures it; later on a service waits for its secrets file to come right again
            await self._pause_after(error)

    async def _pause_after(self, error: Exception) -> None:
        reason = _sentence(error)
        if self.health.ran_for_s > _HEALTHY_AFTER_S:
            self._failures = 0
        self.health.set("failed", reason)
        delay = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        self.health.restarts += 1
        known = isinstance(error, HatcheryError)
        self._log.error("service.failed", reason=reason, retry_in_s=delay, exc_info=None if known else error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stop.wait()

    async def _open_and_run(self) -> None:
        environment = service_environment(self.service.name, self._base)
        async with AsyncExitStack() as stack:
            context = await self._context(stack, environment)
            await self._wait_until_migrated(context)
            if self._stop.is_set():
                return
            parts = await stack.enter_async_context(self.service.open(context))
            async with self._running(context, parts) as failures:
                self.health.checks = (*_own_checks(context, self.service), *parts.checks)
                self.health.set("running")
                self._has_run = True
                self._log.info("service.ready")
                await _until(self._stop, failures)
                self.health.set("draining", "stopping")

    async def _context(self, stack: AsyncExitStack, environment: Mapping[str, str]) -> ServiceContext:
        nats = load(NatsSettings, environment)
        bus = await stack.enter_async_context(Bus.open(nats.url, self.service, seed=nats.seed))
        database: Database | None = None
        if self.service.schema is not None:
            settings = load(DatabaseSettings, environment)
            database = Database(
                settings.url,
                self.service.schema,
                produces=frozenset(self.service.produces),
                pool_size=settings.pool_size,
            )
            stack.push_async_callback(database.close)
        return ServiceContext(
            self.service.name, environment, bus, SystemClock(), self._log, self.health.renew(), database
        )

    async def _wait_until_migrated(self, context: ServiceContext) -> None:
        """Stay unready, naming what is missing, until schema and durables are there."""
        while not self._stop.is_set():
            problem = await _unmigrated(context, self.service)
            if problem is None:
                return
            if self.health.reason != problem:
                self._log.warning("service.waiting", reason=problem)
                self.health.set("waiting", problem)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await self._stop.wait()

    @asynccontextmanager
    async def _running(self, context: ServiceContext, parts: Parts) -> AsyncGenerator[list[asyncio.Task[Any]]]:
        """Everything of the service in motion; the yielded tasks end only by failure."""
        database = context.database if self.service.schema is not None else None
        on_dead = parts.told_of_dead(database.mark_dead if database is not None else None)
        trial = Trial(SqlQuarantine(database)) if database is not None else None
        async with AsyncExitStack() as stack:
            tasks: list[asyncio.Task[Any]] = []
            if parts.rpcs:
                await stack.enter_async_context(_stopped(await context.bus.serve(parts.rpcs)))
            tasks += [await stack.enter_async_context(serving(listener)) for listener in parts.listeners]
            owner_loops = list(parts.owner_loops)
            if database is not None:
                relay = Relay(database, context.bus, context.log)
                owner_loops += [relay.run, relay.housekeeping]
            if parts.batches or self.service.batched:  # what is declared and not handled is refused there
                owner_loops.append(partial(_consume_batches, context, parts, on_dead, trial))
            if database is not None and owner_loops:
                lock = OwnerLock(database, context.log)
                tasks.append(await stack.enter_async_context(_background(lock.run(owner_loops), "owner")))
            loops = [_background(loop(), f"loop-{number}") for number, loop in enumerate(parts.loops)]
            tasks += [await stack.enter_async_context(loop) for loop in loops]
            if parts.subscriptions or set(self.service.consumes) - set(self.service.batched):
                consumption = await context.bus.subscribe(parts.subscriptions, on_dead=on_dead, trial=trial)
                await stack.enter_async_context(_stopped(consumption))
            yield tasks


def _own_checks(context: ServiceContext, service: Service) -> tuple[Check, ...]:
    async def bus() -> str | None:
        return context.bus.health()

    checks = [Check("nats", bus)]
    if service.schema is not None:
        checks.append(Check("postgres", context.database.ping))
        checks.append(Check("outbox", partial(context.database.stale_outbox, _OUTBOX_AGE_S)))
    return tuple(checks)


async def _unmigrated(context: ServiceContext, service: Service) -> str | None:
    """One sentence when the schema or a durable is older than this code wants, else None."""
    try:
        if service.schema is not None and service.migrations is not None:
            found = await version(context.database, service.migrations)
            if not found.is_current:
                return f"schema {found.schema} is at {found.current}, wanted {found.wanted}: run `hatchery db migrate`"
        return await context.bus.missing()
    except DependencyUnavailable as error:
        return error.message


class _Stoppable(Protocol):
    async def stop(self, deadline_s: float) -> None: ...


@asynccontextmanager
async def _stopped(running: _Stoppable) -> AsyncGenerator[None]:
    """Drain what consumes or answers when the block ends."""
    try:
        yield
    finally:
        await running.stop(_DRAIN_S)


async def _consume_batches(
    context: ServiceContext, parts: Parts, on_dead: OnDead | None, trial: Trial | None, _: Ownership
) -> None:
    """Consume in batches for as long as this process is the owner."""
    consumption = await context.bus.subscribe_batches(parts.batches, on_dead=on_dead, trial=trial)
    async with _stopped(consumption):
        await asyncio.Event().wait()


@asynccontextmanager
async def _background(work: Any, name: str) -> AsyncGenerator[asyncio.Task[Any]]:
    task = asyncio.create_task(guarded(work, name), name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=10)


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for the stop; a task that ends before it is the service's failure."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    for task in done - {stopping}:
        await task
        raise ServiceFailed(f"{task.get_name()} ended by itself")


def _sentence(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_sentence(inner) for inner in error.exceptions)
    hint = f" ({error.hint})" if isinstance(error, HatcheryError) and error.hint else ""
    return f"{type(error).__name__}: {error}{hint}"


async def run_services(
    services: Sequence[Service],
    environment: Mapping[str, str],
    *,
    stop: asyncio.Event | None = None,
    on_change: Callable[[Health], None] | None = None,
) -> None:
    """Run the services until SIGTERM, SIGINT or `stop`; then drain them all at once.

    Raises SettingsWrong before any of them begins, SetupError for a health listener's taken port.
    """
    require_settings(services, environment)
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    gc.freeze()  # what the imports made lives for ever: looking through it again and again cost a third of the bus's rate
    supervised = [Supervised(service, environment, stop) for service in services]
    for one in supervised:
        one.health.on_change = on_change
    try:
        await _together(supervised)
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


async def _together(supervised: Sequence[Supervised]) -> None:
    """All of them until each has ended; the first typed error that ends one ends all, and is raised as itself."""
    first: HatcheryError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for one in supervised:
                group.create_task(one.run(), name=one.service.name)
    except* HatcheryError as several:
        first = next(error for error in several.exceptions if isinstance(error, HatcheryError))
    if first is not None:
        raise first
