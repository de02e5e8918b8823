"""Instances: the wishes people publish through the api, and the facts the provisioner reports."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from hatchery_common.contracts.base import Command, Event, Model
from hatchery_common.contracts.operations import OPERATION_EVENTS, InstanceStepFinished, InstanceStepStarted


class InstanceStatus(StrEnum):
    """The one derived value shown for an instance."""

    PROVISIONING = "provisioning"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    RESTARTING = "restarting"
    UPGRADING = "upgrading"
    RESTORING = "restoring"
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


class DesiredState(StrEnum):
    """What the owner wants."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class Condition(Model):
    """One observed aspect of an instance, in the manner of Kubernetes conditions."""

    type: str
    status: bool
    reason: str
    message: str = ""
    observed_generation: int
    last_transition_ms: int


class InstanceState(Model):
    """The full public state of an instance: what every instance event carries and what readers keep.

    `version` increases with every change of the aggregate; times are milliseconds since 1970 UTC.
    """

    instance_id: str
    tenant: str
    name: str
    version: int
    generation: int
    desired: DesiredState
    status: InstanceStatus
    since_ms: int
    deadline_ms: int | None = None
    reason: str | None = None
    message: str | None = None
    waiting_for: str | None = None
    operation_id: str | None = None
    conditions: tuple[Condition, ...] = ()
    can: tuple[str, ...] = ()
    driver: str
    machine_id: str | None = None
    gateway_version: str | None = None
    created_at_ms: int
    updated_at_ms: int
    last_ready_at_ms: int | None = None


class InstanceCommand(Command):
    """A wish about one instance; `generation` is assigned by the api per instance and increases."""

    aggregate: ClassVar[str] = "instance"
    key: ClassVar[str] = "instance_id"

    instance_id: str
    operation_id: str
    generation: int


class ProvisionInstance(InstanceCommand):
    """Create the instance if it is not there and bring it to ready."""

    verb = "provision"
    name: str = "default"
    size: str = "standard"


class StartInstance(InstanceCommand):
    """Bring the instance to ready."""

    verb = "start"


class StopInstance(InstanceCommand):
    """Close its routes and stop its machine; data stays."""

    verb = "stop"


class RestartInstance(InstanceCommand):
    """Replace the machine by a new generation on the same data."""

    verb = "restart"


class DeleteInstance(InstanceCommand):
    """Remove the machine and its data; legal in every state."""

    verb = "delete"


class WakeInstance(Command):
    """Start a sleeping instance if its policy allows; dropped when the generation or `not_after_ms` has passed."""

    aggregate = "instance"
    verb = "wake"
    key = "instance_id"

    instance_id: str
    generation: int
    not_after_ms: int


class InstanceEvent(Event):
    """A fact about an instance with its full public state; apply only if `state.version` is higher than the one held."""

    aggregate: ClassVar[str] = "instance"
    key: ClassVar[str] = "instance_id"

    instance_id: str
    state: InstanceState


class InstanceProvisioningBegan(InstanceEvent):
    """The wish was accepted and the instance exists as a row."""

    verb = "provisioning_began"


class InstanceStartBegan(InstanceEvent):
    """Its machine is being started."""

    verb = "start_began"


class InstanceStarted(InstanceEvent):
    """It is ready: /ready answered and an authenticated hello succeeded along the owner's path."""

    verb = "started"


class InstanceDegraded(InstanceEvent):
    """It runs, but the gateway does not answer as it should."""

    verb = "degraded"


class InstanceStopBegan(InstanceEvent):
    """Its routes are closing and its machine is being stopped."""

    verb = "stop_began"


class InstanceStopped(InstanceEvent):
    """Its machine was observed stopped."""

    verb = "stopped"


class InstanceRestartBegan(InstanceEvent):
    """Its machine is being replaced by a new generation."""

    verb = "restart_began"


class InstanceFailed(InstanceEvent):
    """It is in state error; `reason` and `message` say why and what to do."""

    verb = "failed"


class InstanceDeleteBegan(InstanceEvent):
    """Its machine and data are being removed."""

    verb = "delete_began"


class InstanceDeleted(InstanceEvent):
    """Nothing of it is left; its claim may be released."""

    verb = "deleted"


class InstanceMetered(Event):
    """Cumulative running seconds of one boot of a machine, observed by the driver.

    Published each 60 s and at the end; `gap_seconds` lists time over 2 min that nobody observed and is not in the total.
    """

    aggregate = "instance"
    verb = "metered"
    key = "instance_id"

    instance_id: str
    boot_id: str
    seconds_total: int = Field(ge=0)
    gap_seconds: int = Field(default=0, ge=0)
    observed_at_ms: int
    final: bool = False
    size: str = "standard"


COMMANDS: tuple[type[InstanceCommand], ...] = (
    ProvisionInstance,
    StartInstance,
    StopInstance,
    RestartInstance,
    DeleteInstance,
)
STATUS_EVENTS: dict[InstanceStatus, type[InstanceEvent]] = {
    InstanceStatus.PROVISIONING: InstanceProvisioningBegan,
    InstanceStatus.STARTING: InstanceStartBegan,
    InstanceStatus.READY: InstanceStarted,
    InstanceStatus.DEGRADED: InstanceDegraded,
    InstanceStatus.STOPPING: InstanceStopBegan,
    InstanceStatus.STOPPED: InstanceStopped,
    InstanceStatus.RESTARTING: InstanceRestartBegan,
    InstanceStatus.ERROR: InstanceFailed,
    InstanceStatus.DELETING: InstanceDeleteBegan,
    InstanceStatus.DELETED: InstanceDeleted,
}
EVENTS: tuple[type[Event], ...] = (
    *STATUS_EVENTS.values(),
    InstanceStepStarted,
    InstanceStepFinished,
    *OPERATION_EVENTS,
    InstanceMetered,
)
