"""The provisioner: owns instances and drives their machines."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from hatchery_common.bus import Bus, Subscription
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.gateways import PROBE, ProbeRequest, ProbeResponse
from hatchery_common.contracts.instances import COMMANDS, EVENTS, WakeInstance
from hatchery_common.peers import own_uid
from hatchery_common.secrets import (
    controller_token,
    machine_header_name,
    mint_model_token,
    owner_identity,
    service_identity,
)
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.settings import key, load
from structlog.typing import FilteringBoundLogger

from hatchery_provisioner.adapters.controllers import HttpControllers
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import ProcessDriver, ProcessPlaces, Range
from hatchery_provisioner.adapters.sql import PostgresStore
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.handlers import accept_wish, end_dead_wish, wake_instance
from hatchery_provisioner.ports import BootSecrets
from hatchery_provisioner.reconciler import Reconciler, Sweeper, Tools
from hatchery_provisioner.settings import ProvisionerSettings

_EXIT_GRACE_S = 15.0


@dataclass(frozen=True)
class BusProber:
    """The Prober port: asks the runtime-proxy over the bus."""

    bus: Bus

    async def probe(self, request: ProbeRequest) -> ProbeResponse:
        return await self.bus.call(PROBE, request)


@dataclass(frozen=True)
class DerivedSecrets:
    """The Secrets port: everything of a machine follows from our keys and its id."""

    identity_key: bytes
    controller_key: bytes
    model_seed: bytes
    settings: ProvisionerSettings
    clock: Clock

    def of(self, machine_id: str) -> BootSecrets:
        issued_at = to_ms(self.clock.now()) // 1000
        model: dict[str, Any] = {
            "base_url": self.settings.model_base_url,
            "token": mint_model_token(self.model_seed, machine_id, issued_at=issued_at),
            "id": self.settings.model_id,
            "context_window": self.settings.model_context_window,
            "max_tokens": self.settings.model_max_tokens,
        }
        return BootSecrets(
            service_token=controller_token(self.controller_key, machine_id),
            user_header=machine_header_name(self.identity_key, machine_id),
            owner=owner_identity(machine_id),
            service=service_identity(machine_id),
            model=model,
        )


def _driver(context: ServiceContext, settings: ProvisionerSettings, controllers: HttpControllers) -> ProcessDriver:
    separate = os.getuid() == 0 and settings.separate_users
    if not separate:
        _tell_what_is_shared(context.log, settings, as_root=os.getuid() == 0)
    leases = PostgresLeases(
        context.database,
        context.clock,
        Range(settings.port_first, settings.port_count),
        Range(settings.uid_first, settings.uid_count) if separate else None,
        one_tenant=not separate and not settings.trust_all_users,
    )
    places = ProcessPlaces(
        settings.machines_dir,
        settings.node,
        settings.openclaw,
        settings.min_free_mib * 1024**2,
        settings.gateway_environment,
    )
    return ProcessDriver(places, leases, controllers, context.clock)


def _tell_what_is_shared(log: FilteringBoundLogger, settings: ProvisionerSettings, *, as_root: bool) -> None:
    """An operator must hear what isolation he does without."""
    if as_root:
        log.error(
            "provisioner.isolation.root",
            reason="HATCHERY_PROVISIONER_SEPARATE_USERS=false: gateways, and with them whatever a model does, run as root",
        )
    who = "all users are trusted with each other's data" if settings.trust_all_users else "one user of ours is served"
    log.warning(
        "provisioner.isolation.none",
        trust_all_users=settings.trust_all_users,
        reason=f"gateways share our user, so nothing isolates one instance from another: {who}",
    )


@asynccontextmanager
async def open_provisioner(context: ServiceContext) -> AsyncGenerator[Parts]:
    """Build the adapters and bind the handlers."""
    settings = load(ProvisionerSettings, context.environment)
    controller_key = key(context.environment, "controller")
    controllers = HttpControllers(partial(controller_token, controller_key), uid=own_uid())
    secrets = DerivedSecrets(
        key(context.environment, "machine-identity"),
        controller_key,
        key(context.environment, "model-token"),
        settings,
        context.clock,
    )
    limits = Limits(start_s=settings.start_deadline_s, stop_grace_s=settings.stop_grace_s, drain_s=settings.drain_s)
    store = PostgresStore(context.database)
    driver = _driver(context, settings, controllers)
    prober = BusProber(context.bus)
    tools = Tools(store, driver, controllers, prober, secrets, context.clock, limits, context.log)
    reconciler = Reconciler(tools)
    sweeper = Sweeper(tools, context.metrics, every_s=settings.sweep_every_s)
    wish = partial(
        accept_wish, store=store, clock=context.clock, limits=limits, driver=driver.name, poke=reconciler.poke
    )
    dead = partial(end_dead_wish, store=store, log=context.log)
    waking = partial(wake_instance, store=store, clock=context.clock, limits=limits, poke=reconciler.poke)
    try:
        yield Parts(
            subscriptions=(
                *(Subscription(command, wish, on_dead=dead) for command in COMMANDS),
                Subscription(WakeInstance, waking),
            ),
            owner_loops=(reconciler.run, sweeper.run),
        )
        if settings.stop_machines_on_exit:  # an orderly end only: a crash leaves machines to be adopted
            await driver.stop_all(grace_s=_EXIT_GRACE_S)
    finally:
        await controllers.close()


service = Service(
    name="provisioner",
    open=open_provisioner,
    settings=(ProvisionerSettings,),
    consumes=(*COMMANDS, WakeInstance),
    produces=EVENTS,
    calls=(PROBE,),
    schema="provisioner",
    migrations="hatchery_provisioner.migrations",
    writes_routes=True,
    secrets=("machine-identity", "controller", "model-token"),
)
