"""A provisioner on fakes: controllers, prober and secrets as a test sets them, and the world of one instance."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from hatchery_common.bus import Delivery
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import InstanceCommand, InstanceStatus, ProvisionInstance, WakeInstance
from hatchery_common.log import get_logger
from hatchery_common.owner import Ownership
from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.handlers import accept_wish, wake_instance
from hatchery_provisioner.ports import BootSecrets, ControllerState
from hatchery_provisioner.reconciler import Reconciler, Tools
from provisioner_driver import FakeDriver
from provisioner_store import MemoryStore

TENANT, INSTANCE = "tenant-a", "ins_1"
FAST = Limits(
    start_s=5.0,
    stop_s=3.0,
    drain_s=0.01,
    stop_grace_s=0.2,
    call_s=1.0,
    observe_s=0.5,
    probe_pause_s=0.01,
    silent_s=0.2,
    meter_s=0.2,
    backoff_first_s=0.05,
    max_attempts=3,
)


class FakeControllers:
    """Controllers whose state a test sets; waits end when it changes."""

    def __init__(self, driver: FakeDriver) -> None:
        self.phase, self.reason, self.message = "ready", None, ""
        self.revision = 1
        self.errors: list[Exception] = []
        self.silent = False
        self._driver = driver
        self._changed = asyncio.Event()

    def set(self, phase: str, reason: str | None = None, message: str = "") -> None:
        self.phase, self.reason, self.message = phase, reason, message  # type: ignore[assignment]
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def state(self, address: str, machine_id: str, *, since: int | None, wait_s: float) -> ControllerState | None:
        found = self._driver.machines.get(machine_id)
        if self.errors:
            raise self.errors.pop(0)
        if found is None or not found.running or self.silent:
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


class MovedClock:
    """The machine's own clock, moved ahead by as much as a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


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
    clock: MovedClock = field(default_factory=MovedClock)
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
            self.clock,
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
        await self.deliver(delivered(command, id=operation))
        return operation

    async def deliver(self, delivery: Delivery[Any]) -> None:
        self.sent.append(delivery)
        common = {"store": self.store, "clock": self.clock, "limits": self.limits, "poke": self.reconciler.poke}
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
