"""The Store port in memory: it keeps what was saved, and what was told in which order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hatchery_common.bus import Delivery
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.instances import InstanceEvent, InstanceStatus
from hatchery_common.contracts.operations import InstanceOperationEnded, InstanceStepFinished
from hatchery_common.contracts.routes import Route
from hatchery_common.errors import OwnershipLost
from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.ports import Due


@dataclass
class MemoryTransaction:
    """Keeps its writes until the end of the block."""

    store: MemoryStore
    cause: Delivery[Any] | None
    messages: list[Message] = field(default_factory=list)
    causes: list[str | None] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    routes: list[Route] = field(default_factory=list)
    saved: dict[str, Instance] = field(default_factory=dict)
    saved_boots: dict[str, Boot] = field(default_factory=dict)

    async def first_delivery(self) -> bool:
        assert self.cause is not None
        if self.cause.id in self.store.inbox:
            return False
        self.store.inbox.add(self.cause.id)
        return True

    async def lock(self, instance_id: str) -> Instance | None:
        return self.store.rows.get(instance_id)

    async def save(self, instance: Instance) -> None:
        self.saved[instance.instance_id] = instance

    async def emit(self, message: Message, *, id: str | None = None, operation_id: str | None = None) -> str:  # noqa: A002
        if id is None or id not in self.store.emitted | self.ids:
            self.messages.append(message)
            self.causes.append(operation_id if self.cause is None else self.cause.id)
            self.ids |= {id} if id else set()
        return id or "evt"

    async def put_route(self, route: Route) -> None:
        self.routes.append(route)

    async def boots(self, instance_id: str, *, seen: str | None) -> Sequence[Boot]:
        found = self.store.boots.values()
        return [boot for boot in found if boot.instance_id == instance_id and (not boot.final or boot.boot_id == seen)]

    async def save_boot(self, boot: Boot) -> None:
        self.saved_boots[boot.boot_id] = boot


class MemoryStore:
    """The Store port in memory, one transaction at a time."""

    def __init__(self) -> None:
        self.rows: dict[str, Instance] = {}
        self.boots: dict[str, Boot] = {}
        self.inbox: set[str] = set()
        self.messages: list[Message] = []
        self.causes: list[str | None] = []  # of each message, the id of what led to it
        self.emitted: set[str] = set()
        self.routes: list[Route] = []
        self.machines_seen: set[str] = set()
        self.epoch = 1
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def transaction(
        self, cause: Delivery[Any] | None = None, *, epoch: int | None = None
    ) -> AsyncGenerator[MemoryTransaction]:
        async with self._lock:
            if epoch is not None and epoch != self.epoch:
                raise OwnershipLost("over")
            work = MemoryTransaction(self, cause)
            yield work
            self.rows |= work.saved
            self.boots |= work.saved_boots
            self.messages += work.messages
            self.causes += work.causes
            self.emitted |= work.ids
            self.routes += work.routes
            self.machines_seen |= {one.machine_id for row in work.saved.values() for one in row.machines}

    async def get(self, instance_id: str) -> Instance | None:
        return self.rows.get(instance_id)

    async def pending(self) -> Sequence[Due]:
        rows = self.rows.values()
        return [Due(one.instance_id, one.generation, one.next_at_ms) for one in rows if one.next_at_ms is not None]

    async def known_machines(self) -> dict[str, str]:
        return {machine.machine_id: row.instance_id for row in self.rows.values() for machine in row.machines}

    async def tombstones(self, instance_ids: Sequence[str]) -> frozenset[str]:
        deleted = {key for key, row in self.rows.items() if row.status is InstanceStatus.DELETED}
        return frozenset(deleted & set(instance_ids))

    def told(self, kind: type[Message]) -> list[Any]:
        """Messages of one kind, in order."""
        return [message for message in self.messages if isinstance(message, kind)]

    def statuses(self) -> list[str]:
        """The statuses in the order in which the world heard of them, repeats left out."""
        return [key for key, _ in itertools.groupby(event.state.status.value for event in self.told(InstanceEvent))]

    def ended(self) -> list[tuple[str, str, str | None]]:
        """Operations and how each ended."""
        events = self.told(InstanceOperationEnded)
        return [(one.operation_id, type(one).verb.removeprefix("operation_"), one.reason) for one in events]

    def failed_steps(self) -> list[tuple[str, str | None]]:
        return [(one.step, one.reason) for one in self.told(InstanceStepFinished) if not one.ok]
