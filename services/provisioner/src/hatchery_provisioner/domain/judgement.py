"""The automatic exits: which states have lasted too long, and why."""

from __future__ import annotations

from hatchery_common.contracts.instances import DesiredState, InstanceStatus

from hatchery_provisioner.domain.instance import Instance, Power
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.reasons import Reason

_PASSING = (Reason.MACHINE_LOST,)
_OVERDUE = {InstanceStatus.STOPPING: Reason.STOP_OVERDUE, InstanceStatus.DELETING: Reason.DELETE_OVERDUE}


def overdue_reason(instance: Instance, limits: Limits, now_ms: int) -> tuple[str, str] | None:
    """The reason and detail to leave the present state by, or None while it may last."""
    late = instance.deadline_ms is not None and now_ms >= instance.deadline_ms
    if instance.desired is not DesiredState.RUNNING:
        reason = _OVERDUE.get(instance.status) if late else None
        return (reason, instance.message or "it takes too long") if reason and instance.reason != reason else None
    if instance.failed:
        return None
    if instance.attempts > limits.max_attempts:
        return _last(instance, Reason.CRASH_LOOP), instance.message or "it failed too often"
    if late and instance.status is InstanceStatus.DEGRADED:
        if instance.machine is not None and instance.machine.power is Power.UNKNOWN:
            return Reason.MACHINE_UNKNOWN, instance.message or "the driver cannot see it"
        if instance.reason == Reason.CONTROLLER_SILENT:
            return Reason.CONTROLLER_SILENT, instance.message or "its controller does not answer"
        return Reason.UNHEALTHY, instance.message or "the gateway did not recover"
    if late and instance.machine is not None and instance.machine.power is Power.UNKNOWN:
        return _last(instance, Reason.MACHINE_UNKNOWN), instance.message or "the driver cannot see it"
    if late:
        return _last(instance, Reason.START_DEADLINE), instance.message or "it was not ready in time"
    return None


def _last(instance: Instance, otherwise: Reason) -> str:
    """The last named trouble says more than a count or a clock."""
    return instance.reason if instance.reason and instance.reason not in _PASSING else otherwise
