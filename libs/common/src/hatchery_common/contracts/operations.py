"""Operations on instances, reported by the provisioner: each step of the work, and how it ended."""

from __future__ import annotations

from typing import ClassVar

from hatchery_common.contracts.base import Event


class InstanceStep(Event):
    """One step of the work on an instance: together the provisioning stepper."""

    aggregate: ClassVar[str] = "instance"
    key: ClassVar[str] = "instance_id"

    instance_id: str
    operation_id: str | None = None
    step: str


class InstanceStepStarted(InstanceStep):
    """A step began."""

    verb = "step_started"


class InstanceStepFinished(InstanceStep):
    """A step ended, well or badly."""

    verb = "step_finished"
    ok: bool
    duration_ms: int
    reason: str | None = None
    message: str | None = None
    log_tail: tuple[str, ...] = ()


class InstanceOperationEnded(Event):
    """The terminal event of an operation: exactly one of the three for each."""

    aggregate: ClassVar[str] = "instance"
    key: ClassVar[str] = "instance_id"

    instance_id: str
    operation_id: str
    generation: int
    reason: str | None = None
    message: str | None = None


class InstanceOperationFinished(InstanceOperationEnded):
    """The operation reached what it was for."""

    verb = "operation_finished"


class InstanceOperationFailed(InstanceOperationEnded):
    """The operation failed; reason and message say why."""

    verb = "operation_failed"


class InstanceOperationSuperseded(InstanceOperationEnded):
    """A newer wish made the operation void."""

    verb = "operation_superseded"


OPERATION_EVENTS: tuple[type[InstanceOperationEnded], ...] = (
    InstanceOperationFinished,
    InstanceOperationFailed,
    InstanceOperationSuperseded,
)
