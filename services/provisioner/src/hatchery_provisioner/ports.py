"""What the provisioner needs of the world."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from hatchery_common.bus import Delivery
from hatchery_common.contracts.base import Message
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse
from hatchery_common.contracts.routes import Route

from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.domain.observations import Observation


@dataclass(frozen=True)
class MachineRef:
    """One machine as its driver knows it: ids are ours, `state` is what the driver returned last."""

    instance_id: str
    machine_id: str
    state: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class MachineSpec:
    """What is wanted; ids and epoch go into the labels of whatever the driver creates."""

    instance_id: str
    tenant: str
    machine_id: str
    generation: int
    epoch: int
    size: str = "standard"
    operation_id: str | None = None
    expects_storage: bool = False


@dataclass(frozen=True)
class BootSecrets:
    """What a machine is told at boot, besides what its driver adds; fresh for each machine."""

    service_token: str = field(repr=False)
    user_header: str = field(repr=False)
    owner: str
    service: str
    model: dict[str, Any] = field(repr=False)
    overrides: dict[str, Any] = field(default_factory=dict[str, Any])
    environment: dict[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True)
class Placement:
    """Where a machine is, and the driver's own state of it.

    The uids are for machines that share our addresses: only programs of these users are the machine's.
    """

    state: dict[str, Any] = field(default_factory=dict[str, Any])
    endpoint: str | None = None
    controller: str | None = None
    endpoint_uid: int | None = None
    controller_uid: int | None = None


@dataclass(frozen=True)
class Owned:
    """Something that carries our labels; `machine_id` is None for storage alone and where nobody can tell the machine."""

    instance_id: str
    machine_id: str | None
    generation: int = 0
    running: bool = False


@dataclass(frozen=True)
class ExecResult:
    """The end of a command inside a machine."""

    exit_code: int
    output: str


class MachineDriver(Protocol):
    """Drives machines of one kind. Every call is idempotent by machine id and may be repeated after a death in its middle.

    All raise DriverError: permanent, transient, capacity, or ambiguous (then observe before repeating).
    """

    @property
    def name(self) -> str: ...

    async def prepare_image(self) -> str:
        """Have what machines run ready; returns its version."""
        ...

    async def ensure(self, spec: MachineSpec) -> Placement:
        """Create or adopt the machine and its storage by its labels. Never an empty volume in place of a used one."""
        ...

    async def start(self, machine: MachineRef, secrets: BootSecrets) -> Placement:
        """Start a machine; does nothing when it runs."""
        ...

    async def stop(self, machine: MachineRef, *, grace_s: float) -> None:
        """Stop it and wait for its end; killed after the grace. Storage stays."""
        ...

    async def observe(self, machine: MachineRef) -> Observation:
        """Look, and change nothing."""
        ...

    async def delete(self, machine: MachineRef) -> None:
        """Remove the machine, running or not; storage stays. Gone already is success."""
        ...

    async def exec(self, machine: MachineRef, command: Sequence[str], *, timeout_s: float) -> ExecResult:
        """Run a command with the machine's user and environment."""
        ...

    async def logs(self, machine: MachineRef, *, lines: int) -> tuple[str, ...]:
        """The newest lines, redacted; empty when there are none."""
        ...

    async def list_owned(self) -> Sequence[Owned]:
        """Everything here that carries our labels."""
        ...

    async def delete_storage(self, instance_id: str) -> None:
        """Remove all data of an instance and what its gateway left elsewhere; returns when it is gone."""
        ...


@dataclass(frozen=True)
class ControllerState:
    """What a machine's controller says of its gateway; never used for money or identity."""

    revision: int
    phase: str
    machine_id: str | None = None
    reason: str | None = None
    message: str = ""
    version: str | None = None


class Controllers(Protocol):
    """Reads the state of machines' controllers."""

    async def state(self, address: str, machine_id: str, *, since: int | None, wait_s: float) -> ControllerState | None:
        """The state once it is newer than `since` or the wait is over; None when the controller does not answer.

        Raises DriverCapacity for a port that another user's program holds.
        """
        ...


class Prober(Protocol):
    """Asks the data plane whether a gateway answers its owner."""

    async def probe(self, request: ProbeRequest) -> ProbeResponse:
        """Raises HatcheryError when nobody answers the question."""
        ...


class Secrets(Protocol):
    """Derives what one machine is told."""

    def of(self, machine_id: str) -> BootSecrets: ...


class Transaction(Protocol):
    """One unit of work on the provisioner's tables; messages leave with its commit. Emit only after `lock`."""

    async def first_delivery(self) -> bool: ...

    async def lock(self, instance_id: str) -> Instance | None: ...

    async def save(self, instance: Instance) -> None: ...

    async def emit(self, message: Message, *, id: str | None = None, operation_id: str | None = None) -> str:  # noqa: A002
        """Queue a message; a given id is emitted once.

        Its cause is the transaction's delivery or, without one, the operation that led to it: its command has its id.
        """
        ...

    async def put_route(self, route: Route) -> None: ...

    async def boots(self, instance_id: str, *, seen: str | None) -> Sequence[Boot]:
        """Boots that are not final, and the one that was just seen running, even if it was called ended before."""
        ...

    async def save_boot(self, boot: Boot) -> None: ...


@dataclass(frozen=True)
class Due:
    """A row whose time has come."""

    instance_id: str
    generation: int
    next_at_ms: int


class Store(Protocol):
    """The provisioner's tables. Raises DependencyUnavailable, and OwnershipLost for an epoch that is over."""

    def transaction(
        self, cause: Delivery[Any] | None = None, *, epoch: int | None = None
    ) -> AbstractAsyncContextManager[Transaction]: ...

    async def get(self, instance_id: str) -> Instance | None: ...

    async def pending(self) -> Sequence[Due]:
        """All rows with work left, the earliest first."""
        ...

    async def known_machines(self) -> dict[str, str]:
        """Machine ids that are not gone, each with its instance."""
        ...

    async def tombstones(self, instance_ids: Sequence[str]) -> frozenset[str]:
        """Those of the ids whose instance was deleted for good."""
        ...
