"""Operations: one accepted intent each, from acceptance to its one terminal event."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceCommand,
    ProvisionInstance,
    RestartInstance,
    StartInstance,
    StopInstance,
)
from hatchery_common.contracts.operations import (
    InstanceOperationEnded,
    InstanceOperationFailed,
    InstanceOperationFinished,
    InstanceOperationSuperseded,
)


class Kind(StrEnum):
    """What the person asked for."""

    PROVISION = "provision"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DELETE = "delete"


class OperationState(StrEnum):
    """Where an operation stands."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    SUPERSEDED = "superseded"


OPEN = frozenset({OperationState.ACCEPTED, OperationState.RUNNING})
ENDS: dict[type[InstanceOperationEnded], OperationState] = {
    InstanceOperationFinished: OperationState.FINISHED,
    InstanceOperationFailed: OperationState.FAILED,
    InstanceOperationSuperseded: OperationState.SUPERSEDED,
}
COMMAND: dict[Kind, type[InstanceCommand]] = {
    Kind.PROVISION: ProvisionInstance,
    Kind.START: StartInstance,
    Kind.STOP: StopInstance,
    Kind.RESTART: RestartInstance,
    Kind.DELETE: DeleteInstance,
}
KEEP_KEYS_MS = 30 * 86_400_000  # how long an Idempotency-Key counts
# After this long without an end an operation is marked overdue; it may still end, and only its owner says how.
DEADLINE_MS: dict[Kind, int] = {
    Kind.PROVISION: 300_000,
    Kind.START: 240_000,
    Kind.STOP: 90_000,
    Kind.RESTART: 300_000,
    Kind.DELETE: 240_000,
}
# The seeds' one-line prefixes (AC12), for failures that are found after the request was accepted.
PREFIX: dict[Kind, str] = {
    Kind.PROVISION: "openclaw createInstance provision_instance",
    Kind.START: "openclaw startInstance",
    Kind.STOP: "openclaw stopInstance",
    Kind.RESTART: "openclaw restartInstance",
    Kind.DELETE: "openclaw deleteInstance",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One intent on one instance."""

    operation_id: str
    tenant: str
    instance_id: str
    name: str
    kind: Kind
    generation: int
    state: OperationState
    created_ms: int
    deadline_ms: int
    updated_ms: int
    ended_ms: int | None = None
    overdue_ms: int | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether its end is still to come."""
        return self.state in OPEN

    @property
    def is_overdue(self) -> bool:
        """Whether its end is late: its command may be lost, so that a repeated wish is sent again instead of joining it."""
        return self.is_open and self.overdue_ms is not None

    @property
    def error(self) -> str | None:
        """The one prefixed line that says why it did not reach its aim."""
        if self.state not in {OperationState.FAILED, OperationState.SUPERSEDED}:
            return None
        what = self.reason or self.state.value
        return f"{PREFIX[self.kind]}: {what}: {self.message}" if self.message else f"{PREFIX[self.kind]}: {what}"


@dataclass(frozen=True, slots=True)
class OperationEvent:
    """One numbered line of an operation's progress; numbers begin at 1 and have no gaps."""

    number: int
    type: str
    at_ms: int
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_last(self) -> bool:
        """Whether nothing follows it."""
        return self.type in {state.value for state in ENDS.values()}


def ended(
    operation: Operation, state: OperationState, reason: str | None, message: str | None, at_ms: int
) -> Operation:
    """The operation after its terminal event."""
    return replace(operation, state=state, reason=reason, message=message, ended_ms=at_ms, updated_ms=at_ms)


def began(operation: Operation, at_ms: int) -> Operation:
    """The operation once its owner was seen to work on it."""
    return replace(operation, state=OperationState.RUNNING, updated_ms=at_ms)


def marked_overdue(operation: Operation, at_ms: int) -> Operation:
    """The operation past its deadline: still open, since only its owner knows how it ends."""
    return replace(operation, overdue_ms=at_ms, updated_ms=at_ms)
