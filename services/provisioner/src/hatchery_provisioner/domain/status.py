"""The one derived status with its since, deadline, conditions and what may be done now."""

from __future__ import annotations

from hatchery_common.contracts.instances import Condition, DesiredState, InstanceState, InstanceStatus
from hatchery_common.contracts.routes import RouteState

from hatchery_provisioner.domain.instance import Instance, Power, StorageStage
from hatchery_provisioner.domain.limits import Limits

_CAN: dict[InstanceStatus, tuple[str, ...]] = {
    InstanceStatus.READY: ("stop", "restart", "delete"),
    InstanceStatus.DEGRADED: ("stop", "restart", "delete"),
    InstanceStatus.STOPPED: ("start", "delete"),
    InstanceStatus.STOPPING: ("start", "delete"),
    InstanceStatus.ERROR: ("provision", "start", "restart", "stop", "delete"),
    InstanceStatus.DELETING: ("delete",),
    InstanceStatus.DELETED: (),
}
_UNDER_WAY = ("stop", "restart", "delete")


def derive(instance: Instance) -> InstanceStatus:
    """The status that follows from the wish and from what was observed; never from what was merely asked of a driver."""
    if instance.desired is DesiredState.DELETED:
        gone = not instance.machines and instance.storage is StorageStage.GONE
        return InstanceStatus.DELETED if gone else InstanceStatus.DELETING
    if instance.desired is DesiredState.STOPPED:
        running = any(machine.power is not Power.OFF for machine in instance.machines)
        return InstanceStatus.STOPPING if running else InstanceStatus.STOPPED
    if instance.failed:
        return InstanceStatus.ERROR
    if instance.ready and not instance.renew:
        return InstanceStatus.DEGRADED if instance.degraded else InstanceStatus.READY
    if instance.restarting:
        return InstanceStatus.RESTARTING
    never = instance.last_ready_at_ms is None and instance.storage is StorageStage.NONE
    return InstanceStatus.PROVISIONING if never else InstanceStatus.STARTING


def settle(before: Instance | None, after: Instance, limits: Limits, now_ms: int) -> Instance:
    """Bring status, since, deadline, conditions and version of a changed instance into line."""
    status = derive(after)
    fields: dict[str, object] = {"status": status, "updated_at_ms": now_ms, "version": after.version + 1}
    if before is None or status is not before.status or after.generation != before.generation:
        fields["deadline_ms"] = _deadline_ms(status, limits, now_ms)
    if before is None or status is not before.status:
        fields["since_ms"] = now_ms
    after = after.evolve(**fields)
    return after.evolve(conditions=conditions(after, now_ms))


def _deadline_ms(status: InstanceStatus, limits: Limits, now_ms: int) -> int | None:
    allowed = limits.of_status(status)
    return None if allowed is None else now_ms + int(allowed * 1000)


def with_fresh_deadline(instance: Instance, limits: Limits, now_ms: int) -> Instance:
    """The instance with the whole time of its status before it: nobody worked on it while there was no owner."""
    return instance.evolve(deadline_ms=_deadline_ms(instance.status, limits, now_ms))


def conditions(instance: Instance, now_ms: int) -> tuple[Condition, ...]:
    """The observed aspects; a transition time moves only when its status changes."""
    held = {condition.type: condition for condition in instance.conditions}
    machine = instance.machine
    on = machine is not None and machine.power is Power.ON
    known = machine is None or machine.power is not Power.UNKNOWN
    aspects = (
        ("machine_running", on, machine.power.value if machine else "no_machine"),
        ("machine_known", known, "observed" if known else "unknown"),
        ("gateway_ready", instance.ready and not instance.degraded, instance.reason or "observed"),
        ("route_open", instance.route_state is RouteState.RUNNING, instance.route_state.value),
    )
    return tuple(_condition(held.get(kind), kind, value, why, instance, now_ms) for kind, value, why in aspects)


def _condition(held: Condition | None, kind: str, value: bool, why: str, instance: Instance, now_ms: int) -> Condition:
    moved = held is None or held.status != value
    return Condition(
        type=kind,
        status=value,
        reason=why,
        message=(instance.message or "") if not value else "",
        observed_generation=instance.generation,
        last_transition_ms=now_ms if held is None or moved else held.last_transition_ms,
    )


def public_state(instance: Instance) -> InstanceState:
    """What every instance event carries."""
    return InstanceState(
        instance_id=instance.instance_id,
        tenant=instance.tenant,
        name=instance.name,
        version=instance.version,
        generation=instance.generation,
        desired=instance.desired,
        status=instance.status,
        since_ms=instance.since_ms,
        deadline_ms=instance.deadline_ms,
        reason=instance.reason,
        message=instance.message,
        waiting_for=instance.waiting_for,
        operation_id=instance.operation.id if instance.operation else None,
        conditions=instance.conditions,
        can=_CAN.get(instance.status, _UNDER_WAY),
        driver=instance.driver,
        machine_id=instance.machine.machine_id if instance.machine else None,
        gateway_version=instance.gateway_version,
        created_at_ms=instance.created_at_ms,
        updated_at_ms=instance.updated_at_ms,
        last_ready_at_ms=instance.last_ready_at_ms,
    )


def is_told(before: Instance | None, after: Instance) -> bool:
    """Whether readers must hear of this change by an event."""
    if after.fence:
        return False
    if before is None or before.fence:
        return True

    def told(one: Instance) -> tuple[object, ...]:
        wish = (one.name, one.generation, one.desired, one.operation)
        return (*wish, one.status, one.deadline_ms, one.reason, one.message)

    return told(before) != told(after)
