"""Instances as people see them: the claim, what an intent would do, and the overlay of open operations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hatchery_common.contracts.instances import DesiredState, InstanceState, InstanceStatus

from hatchery_api.domain.errors import InstanceDeleting, NoInstance
from hatchery_api.domain.operations import Kind, Operation

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"
DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Claim:
    """A user's hold on one instance name; `generation` numbers the intents on it."""

    tenant: str
    name: str
    instance_id: str
    generation: int
    deleting: bool
    created_ms: int


class Decision(StrEnum):
    """What an intent does."""

    BEGIN = "begin"  # a new operation
    JOIN = "join"  # the operation that already runs
    NOTHING = "nothing"  # the instance is as wished


@dataclass(frozen=True, slots=True)
class Sight:
    """All that is known of one instance: the claim, the read model, and the newest operation."""

    claim: Claim | None
    state: InstanceState | None
    newest: Operation | None

    @property
    def running(self) -> Operation | None:
        """The newest operation while it is open."""
        return self.newest if self.newest is not None and self.newest.is_open else None


def decide(kind: Kind, name: str, sight: Sight) -> Decision:
    """What this intent does now; raises NoInstance, or InstanceDeleting naming the operation."""
    if sight.claim is None:
        if kind is Kind.PROVISION:
            return Decision.BEGIN
        raise NoInstance(f"there is no instance named {name}", hint="provision it first")
    if sight.claim.deleting:
        return _decide_while_deleting(kind, name, sight)
    running = sight.running
    if running is not None and not running.is_overdue and _covers(running.kind, kind):
        return Decision.JOIN
    # A provision asks only that the instance is there: it does not undo a stop that is late.
    settled = running is None or (kind is Kind.PROVISION and running.kind is Kind.STOP)
    return Decision.NOTHING if settled and _is_so(kind, sight.state) else Decision.BEGIN


def _decide_while_deleting(kind: Kind, name: str, sight: Sight) -> Decision:
    if kind is Kind.DELETE:
        return Decision.JOIN if sight.running is not None and not sight.running.is_overdue else Decision.BEGIN
    operation_id = sight.newest.operation_id if sight.newest else None
    raise InstanceDeleting(
        f"instance {name} is being deleted", hint="wait for the operation to end", operation_id=operation_id
    )


def _covers(running: Kind, wished: Kind) -> bool:
    """Whether the running operation already leads to what is wished."""
    if wished is Kind.PROVISION:
        return True
    return running is wished or (wished is Kind.START and running in {Kind.PROVISION, Kind.RESTART})


def _is_so(kind: Kind, state: InstanceState | None) -> bool:
    """Whether the instance is already as wished, so that nothing need be done."""
    if state is None:
        return False
    if kind is Kind.PROVISION:
        return state.status not in {InstanceStatus.ERROR, InstanceStatus.DELETED}
    if kind is Kind.START:
        return state.status is InstanceStatus.READY and state.desired is DesiredState.RUNNING
    return kind is Kind.STOP and state.status is InstanceStatus.STOPPED and state.desired is DesiredState.STOPPED


_PENDING: dict[Kind, tuple[InstanceStatus, DesiredState]] = {
    Kind.PROVISION: (InstanceStatus.PROVISIONING, DesiredState.RUNNING),
    Kind.START: (InstanceStatus.STARTING, DesiredState.RUNNING),
    Kind.STOP: (InstanceStatus.STOPPING, DesiredState.STOPPED),
    Kind.RESTART: (InstanceStatus.RESTARTING, DesiredState.RUNNING),
    Kind.DELETE: (InstanceStatus.DELETING, DesiredState.DELETED),
}
_CAN: dict[Kind, tuple[str, ...]] = {
    Kind.PROVISION: ("stop", "delete"),
    Kind.START: ("stop", "delete"),
    Kind.STOP: ("start", "delete"),
    Kind.RESTART: ("stop", "delete"),
    Kind.DELETE: (),
}


def shown(sight: Sight) -> InstanceState | None:
    """The state to show: the read model, overlaid by an accepted intent that the provisioner has not reported on yet."""
    operation = sight.running
    if operation is None or (sight.state is not None and sight.state.generation >= operation.generation):
        return sight.state or _failed_unseen(sight.newest)
    overlay = _overlay(operation)
    if sight.state is None:
        return overlay
    return overlay.model_copy(
        update={
            name: getattr(sight.state, name)
            for name in ("version", "driver", "machine_id", "gateway_version", "created_at_ms", "last_ready_at_ms")
        }
    )


def _failed_unseen(operation: Operation | None) -> InstanceState | None:
    """An instance whose only trace is an operation that ended badly before anything was reported."""
    if operation is None or operation.error is None:
        return None
    update = {"status": InstanceStatus.ERROR, "reason": operation.reason, "message": operation.error}
    return _overlay(operation).model_copy(update={**update, "waiting_for": None, "can": ("provision", "delete")})


def _overlay(operation: Operation) -> InstanceState:
    status, desired = _PENDING[operation.kind]
    return InstanceState(
        instance_id=operation.instance_id,
        tenant=operation.tenant,
        name=operation.name,
        version=0,
        generation=operation.generation,
        desired=desired,
        status=status,
        since_ms=operation.created_ms,
        deadline_ms=operation.deadline_ms,
        reason="accepted",
        message=f"{operation.kind.value} was accepted",
        waiting_for="provisioner",
        operation_id=operation.operation_id,
        can=_CAN[operation.kind],
        driver="pending",
        created_at_ms=operation.created_ms,
        updated_at_ms=operation.updated_ms,
    )
