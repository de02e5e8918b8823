"""What is stored of one instance: the wish, what was observed, and the work in between."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from hatchery_common.contracts.instances import Condition, DesiredState, InstanceStatus
from hatchery_common.contracts.routes import RouteState


class Power(StrEnum):
    """What was last observed of a machine; `stopped` and `gone` are recorded from observations only."""

    OFF = "off"
    ON = "on"
    UNKNOWN = "unknown"


class MachineStage(StrEnum):
    """How far a machine has come; its id is stored before the driver hears of it."""

    PLANNED = "planned"
    CREATED = "created"
    RETIRING = "retiring"
    GONE = "gone"


class StorageStage(StrEnum):
    """The instance's data; once used, a missing volume is an error and never replaced by an empty one."""

    NONE = "none"
    USED = "used"
    GONE = "gone"


class Verb(StrEnum):
    """What an operation is for."""

    PROVISION = "provision"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DELETE = "delete"


@dataclass(frozen=True)
class Operation:
    """An accepted wish that has not ended."""

    id: str
    verb: Verb
    generation: int


@dataclass(frozen=True)
class Machine:
    """One machine of an instance; `state` belongs to its driver."""

    machine_id: str
    generation: int
    stage: MachineStage = MachineStage.PLANNED
    power: Power = Power.OFF
    endpoint: str | None = None
    controller: str | None = None
    boot_id: str | None = None
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    endpoint_uid: int | None = None
    controller_uid: int | None = None

    @property
    def is_headless(self) -> bool:
        """Something of it runs that belongs to no boot: it is stopped before it is started again."""
        return self.power is Power.ON and self.boot_id is None


@dataclass(frozen=True)
class Instance:
    """The aggregate; times are milliseconds since 1970 UTC, `next_at_ms` is null when nothing is left to do.

    A `fence` is no instance yet: it only keeps the generation of a stop until a provision tells what there is to stop.
    """

    instance_id: str
    tenant: str
    name: str
    size: str
    driver: str
    created_at_ms: int
    updated_at_ms: int
    since_ms: int
    generation: int = 0
    version: int = 0
    desired: DesiredState = DesiredState.RUNNING
    status: InstanceStatus = InstanceStatus.PROVISIONING
    stopped_by: str | None = None
    operation: Operation | None = None
    deadline_ms: int | None = None
    reason: str | None = None
    message: str | None = None
    waiting_for: str | None = None
    conditions: tuple[Condition, ...] = ()
    machine: Machine | None = None
    retiring: tuple[Machine, ...] = ()
    storage: StorageStage = StorageStage.NONE
    renew: bool = False
    restarting: bool = False
    failed: bool = False
    ready: bool = False
    degraded: bool = False
    ready_since_ms: int | None = None
    last_ready_at_ms: int | None = None
    gateway_version: str | None = None
    attempts: int = 0
    not_before_ms: int | None = None
    route_state: RouteState = RouteState.GONE
    route_version: int = 0
    next_at_ms: int | None = None
    fence: bool = False

    def evolve(self, **changes: Any) -> Instance:
        """A copy with these fields changed."""
        return replace(self, **changes)

    def with_machine(self, **changes: Any) -> Instance:
        """A copy with these fields of its machine changed."""
        if self.machine is None:
            return self
        return replace(self, machine=replace(self.machine, **changes))

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The current machine and those that are being removed."""
        return (*self.retiring, *((self.machine,) if self.machine else ()))
