"""Fakes over the provisioner's ports: a store that keeps what was emitted, a driver that misbehaves on demand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from hatchery_common.bus import Delivery
from hatchery_common.clock import SystemClock, to_ms
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    InstanceCommand,
    InstanceEvent,
    InstanceOperationEnded,
    InstanceStatus,
    InstanceStepFinished,
    ProvisionInstance,
    Route,
    WakeInstance,
)
from hatchery_common.errors import OwnershipLost
from hatchery_common.log import get_logger
from hatchery_common.owner import Ownership
from hatchery_provisioner.domain.errors import DriverPermanent, DriverTransient
from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.domain.observations import Observation, Phase
from hatchery_provisioner.handlers import accept_wish, wake_instance
from hatchery_provisioner.ports import (
    BootSecrets,
    ControllerState,
    Due,
    ExecResult,
    MachineRef,
    MachineSpec,
    Owned,
    Placement,
)
from hatchery_provisioner.reconciler import Reconciler, Tools

TENANT, INSTANCE = "tenant-a", "ins_1"
FAST = Limits(
    start_s=5.0,
    stop_s=3.0,
    drain_s=0.01,
    stop_grace_s=0.2,
    call_s=1.0,
    observe_s=0.5,
    probe_pause_s=0.01,
    meter_s=0.2,
    backoff_first_s=0.05,
    max_attempts=3,
)


@dataclass
class MemoryTransaction:
    """Keeps its writes until the end of the block."""

    store: MemoryStore
    cause: Delivery[Any] | None
    messages: list[Message] = field(default_factory=list)
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

    async def emit(self, message: Message) -> str:
        self.messages.append(message)
        return "evt"

    async def put_route(self, route: Route) -> None:
        self.routes.append(route)

    async def boots(self, instance_id: str) -> Sequence[Boot]:
        found = self.store.boots.values()
        return [boot for boot in found if boot.instance_id == instance_id and not boot.final]

    async def save_boot(self, boot: Boot) -> None:
        self.saved_boots[boot.boot_id] = boot


class MemoryStore:
    """The Store port in memory, one transaction at a time."""

    def __init__(self) -> None:
        self.rows: dict[str, Instance] = {}
        self.boots: dict[str, Boot] = {}
        self.inbox: set[str] = set()
        self.messages: list[Message] = []
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


@dataclass
class FakeMachine:
    """One machine of the fake driver."""

    spec: MachineSpec
    boots: int = 0
    running: bool = False
    started_at_ms: int = 0


class FakeDriver:
    """A driver in memory that obeys the port; `before` and `after` hooks of an operation make it misbehave."""

    name = "fake"

    def __init__(self) -> None:
        self.machines: dict[str, FakeMachine] = {}
        self.storage: set[str] = set()
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.most_running = 0

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        self.calls.append(name)
        if name in self.before:
            await self.before[name]()
        yield
        if name in self.after:
            await self.after[name]()

    async def prepare_image(self) -> str:
        async with self._call("prepare_image"):
            return "1"

    async def ensure(self, spec: MachineSpec) -> Placement:
        async with self._call("ensure"):
            if spec.expects_storage and spec.instance_id not in self.storage:
                raise DriverPermanent("storage_missing", "its storage is gone")
            others = [one for one in self.machines.values() if one.spec.instance_id == spec.instance_id]
            newer = [one for one in others if one.spec.generation > spec.generation]
            if newer:
                raise DriverPermanent("stale_generation", "a newer machine exists")
            if any(one.running for one in others if one.spec.machine_id != spec.machine_id):
                raise DriverTransient("former_machine_running", "still there")
            self.storage.add(spec.instance_id)
            self.machines.setdefault(spec.machine_id, FakeMachine(spec))
            return Placement({"n": len(self.machines)}, "http://h:1", "http://h:2")

    async def start(self, machine: MachineRef, secrets: BootSecrets) -> Placement:
        async with self._call("start"):
            found = self.machines.get(machine.machine_id)
            if found is None:
                raise DriverTransient("machine_absent", "create it first")
            if not found.running:
                found.running, found.boots = True, found.boots + 1
                found.started_at_ms = to_ms(SystemClock().now())
            running = sum(one.running for one in self.machines.values())
            self.most_running = max(self.most_running, running)
        return Placement({"started": True}, "http://h:1", "http://h:2")

    async def stop(self, machine: MachineRef, *, grace_s: float) -> None:
        async with self._call("stop"):
            if machine.machine_id in self.machines:
                self.machines[machine.machine_id].running = False

    async def observe(self, machine: MachineRef) -> Observation:
        async with self._call("observe"):
            now_ms = to_ms(SystemClock().now())
            found = self.machines.get(machine.machine_id)
            if found is None:
                return Observation(Phase.ABSENT, now_ms)
            if not found.running:
                return Observation(Phase.STOPPED, now_ms)
            boot = f"boot_{machine.machine_id}_{found.boots}"
            return Observation(Phase.RUNNING, now_ms, boot, found.started_at_ms, "http://h:1", "http://h:2")

    async def delete(self, machine: MachineRef) -> None:
        async with self._call("delete"):
            self.machines.pop(machine.machine_id, None)

    async def exec(self, machine: MachineRef, command: Sequence[str], *, timeout_s: float) -> ExecResult:
        return ExecResult(0, "")

    async def logs(self, machine: MachineRef, *, lines: int) -> tuple[str, ...]:
        return ("the last line",)

    async def list_owned(self) -> Sequence[Owned]:
        found = [
            Owned(one.spec.instance_id, key, one.spec.generation, one.running) for key, one in self.machines.items()
        ]
        labelled = {one.instance_id for one in found}
        return [*found, *(Owned(name, None) for name in self.storage - labelled)]

    async def delete_storage(self, instance_id: str) -> None:
        async with self._call("delete_storage"):
            self.storage.discard(instance_id)


class FakeControllers:
    """Controllers whose state a test sets; waits end when it changes."""

    def __init__(self, driver: FakeDriver) -> None:
        self.phase, self.reason, self.message = "ready", None, ""
        self.revision = 1
        self._driver = driver
        self._changed = asyncio.Event()

    def set(self, phase: str, reason: str | None = None, message: str = "") -> None:
        self.phase, self.reason, self.message = phase, reason, message  # type: ignore[assignment]
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def state(self, address: str, machine_id: str, *, since: int | None, wait_s: float) -> ControllerState | None:
        found = self._driver.machines.get(machine_id)
        if found is None or not found.running:
            return None
        if since is not None and since >= self.revision:
            try:
                async with asyncio.timeout(min(wait_s, 0.1)):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return ControllerState(self.revision, self.phase, machine_id, self.reason, self.message)


class FakeProber:
    """A data plane that says yes, or what a test tells it to say."""

    def __init__(self) -> None:
        self.answers: list[ProbeResponse | Exception] = []
        self.requests: list[ProbeRequest] = []

    async def probe(self, request: ProbeRequest) -> ProbeResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else ProbeResponse(ok=True, stage=ProbeStage.DONE)
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeSecrets:
    """Secrets that are none."""

    def of(self, machine_id: str) -> BootSecrets:
        return BootSecrets("token", "x-hatchery-0", f"owner@{machine_id}", f"svc@{machine_id}", {})


_numbers = itertools.count(1)


def delivered(message: Message, *, id: str | None = None) -> Delivery[Any]:  # noqa: A002
    """A message as the bus hands it over."""
    number = next(_numbers)
    return Delivery(
        message=message,
        id=id or f"evt_{number}",
        type=message.message_type(),
        tenant=message.tenant,
        subject=message.subject,
        source="api",
        time=datetime.now(UTC),
        stream="CMD",
        sequence=number,
    )


@dataclass
class World:
    """A provisioner on fakes, with its reconciler running."""

    store: MemoryStore = field(default_factory=MemoryStore)
    driver: FakeDriver = field(default_factory=FakeDriver)
    limits: Limits = FAST
    generation: int = 0
    sent: list[Delivery[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.controllers = FakeControllers(self.driver)
        self.prober = FakeProber()
        self.reconciler = self.build()
        self._task: asyncio.Task[None] | None = None

    def tools(self) -> Tools:
        return Tools(
            self.store,
            self.driver,
            self.controllers,
            self.prober,
            FakeSecrets(),
            SystemClock(),
            self.limits,
            get_logger("test"),
        )

    def build(self) -> Reconciler:
        return Reconciler(self.tools())

    async def wish(self, kind: type[InstanceCommand], *, operation: str | None = None, **fields: Any) -> str:
        """Send the next wish of the instance; returns its operation."""
        self.generation += 1
        operation = operation or f"op_{self.generation}"
        extra = {"name": "default"} if kind is ProvisionInstance else {}
        command = kind(
            tenant=TENANT,
            instance_id=INSTANCE,
            operation_id=operation,
            generation=fields.pop("generation", self.generation),
            **extra,
            **fields,
        )
        await self.deliver(delivered(command))
        return operation

    async def deliver(self, delivery: Delivery[Any]) -> None:
        self.sent.append(delivery)
        common = {"store": self.store, "clock": SystemClock(), "limits": self.limits, "poke": self.reconciler.poke}
        if isinstance(delivery.message, WakeInstance):
            await wake_instance(delivery, **common)
        else:
            await accept_wish(delivery, driver="fake", **common)

    @property
    def row(self) -> Instance:
        return self.store.rows[INSTANCE]

    async def until(self, condition: Callable[[], bool], limit_s: float = 5.0) -> None:
        """Wait until something is so; fails with what is."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():  # noqa: ASYNC110 - a condition of any kind sets no event
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"not reached: {self.store.rows.get(INSTANCE)}, {self.driver.calls[-20:]}") from None

    async def until_status(self, status: InstanceStatus, limit_s: float = 5.0) -> None:
        await self.until(lambda: INSTANCE in self.store.rows and self.row.status is status, limit_s)

    async def until_settled(self, status: InstanceStatus, limit_s: float = 5.0) -> None:
        """The status, and no operation left open."""
        await self.until(
            lambda: INSTANCE in self.store.rows and self.row.status is status and self.row.operation is None, limit_s
        )

    def begin(self) -> None:
        self._task = asyncio.create_task(self.reconciler.run(Ownership(self.store.epoch)))

    async def die(self) -> None:
        """The control plane is gone; machines, rows and messages stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._task = None

    async def revive(self) -> None:
        """A new process is elected."""
        await self.die()
        self.store.epoch += 1
        self.reconciler = self.build()
        self.begin()

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()


def limits(**changes: float) -> Limits:
    """The fast limits with some changed."""
    return replace(FAST, **changes)


def raising(*errors: Exception | None) -> Callable[[], Awaitable[None]]:
    """A hook that raises these in turn (None: behaves), and then behaves for ever."""
    left = list(errors)

    async def hook() -> None:
        error = left.pop(0) if left else None
        if error is not None:
            raise error

    return hook
