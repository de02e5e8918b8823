"""What a service is: its declarations, what it opens, and what it is given.

Each service's `main.py` holds `service = Service(...)`, registered as an entry point in the group `hatchery.services`. From the
declarations follow the bus permissions, the durables, the catalogue and what the bus refuses to publish.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from hatchery_common.clock import Clock
from hatchery_common.contracts.base import Command, Event, Message, Rpc

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from hatchery_common.bus import BatchSubscription, Bus, OnDead, Subscription
    from hatchery_common.database import Database
    from hatchery_common.owner import Ownership
    from hatchery_common.settings import Settings

Loop = Callable[[], Awaitable[None]]
OwnerLoop = Callable[["Ownership"], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One readiness check: returns None when well, else one sentence that names what is wrong."""

    name: str
    run: Callable[[], Awaitable[str | None]]


@dataclass(frozen=True)
class Listener:
    """An ASGI application on an address; the runner binds the socket itself."""

    name: str
    app: Any
    host: str
    port: int


@dataclass(frozen=True)
class RpcHandler:
    """The function that answers an Rpc; it raises HatcheryError for a typed refusal."""

    rpc: Rpc[Any, Any]
    handler: Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True)
class Parts:
    """What a service runs once it is open.

    `subscriptions` handle one message at a time in lanes; `batches` take many in one transaction and run in the owner only.
    `owner_loops` run under the owner lock and are cancelled when it is lost; `loops` run in every replica. `on_dead` is told of
    every message that went to the dead letters, until it returns; it must be safe to repeat.
    """

    subscriptions: Sequence[Subscription] = ()
    batches: Sequence[BatchSubscription] = ()
    rpcs: Sequence[RpcHandler] = ()
    listeners: Sequence[Listener] = ()
    owner_loops: Sequence[OwnerLoop] = ()
    loops: Sequence[Loop] = ()
    checks: Sequence[Check] = ()
    on_dead: OnDead | None = None

    def told_of_dead(self, inbox: OnDead | None) -> OnDead | None:
        """The hook for dead letters: the inbox is told first, then `on_dead`; from the start again when one fails."""
        own = self.on_dead
        if inbox is None or own is None:
            return inbox or own

        async def both(message_id: str, message_type: str) -> None:
            await inbox(message_id, message_type)
            await own(message_id, message_type)

        return both


@dataclass(frozen=True)
class ServiceContext:
    """What a service is given to open with; `environment` holds its settings and secrets (nothing else is read)."""

    name: str
    environment: Mapping[str, str]
    bus: Bus
    clock: Clock
    log: FilteringBoundLogger
    metrics: CollectorRegistry
    _database: Database | None = None

    @property
    def database(self) -> Database:
        """The service's own schema; only for services that declare one."""
        if self._database is None:
            msg = f"{self.name} declares no schema, so it has no database"
            raise RuntimeError(msg)
        return self._database


@dataclass(frozen=True)
class Service:
    """The declaration of one service."""

    name: str
    open: Callable[[ServiceContext], AbstractAsyncContextManager[Parts]]
    consumes: tuple[type[Message], ...] = ()
    batched: tuple[type[Message], ...] = ()  # those of `consumes` that come in batches (durable `<name>-batch`)
    produces: tuple[type[Message], ...] = ()
    serves: tuple[Rpc[Any, Any], ...] = ()
    calls: tuple[Rpc[Any, Any], ...] = ()
    schema: str | None = None  # Postgres schema and role; None: nothing durable
    migrations: str | None = None  # dotted package with Alembic's env and versions
    reads_routes: bool = False
    writes_routes: bool = False
    reads_threads: bool = False
    writes_threads: bool = False
    secrets: tuple[str, ...] = ()  # names of derived keys that `secrets render` gives it
    settings: tuple[type[Settings], ...] = ()  # its settings classes, for the reference

    @property
    def commands(self) -> tuple[type[Message], ...]:
        """The commands it owns."""
        return tuple(message for message in self.consumes if issubclass(message, Command))

    @property
    def events(self) -> tuple[type[Message], ...]:
        """The events it reads."""
        return tuple(message for message in self.consumes if issubclass(message, Event))


OpenedParts = AsyncGenerator[Parts]
