"""Saves a changed instance and tells the world in the same transaction: status events, ended operations, routes."""

from __future__ import annotations

from collections.abc import Sequence

from hatchery_common.contracts.instances import STATUS_EVENTS
from hatchery_common.contracts.operations import (
    InstanceOperationEnded,
    InstanceOperationFailed,
    InstanceOperationFinished,
    InstanceOperationSuperseded,
)
from hatchery_common.contracts.routes import Route, RouteState

from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.status import derive, is_told, public_state, settle
from hatchery_provisioner.domain.wishes import Ended, finish
from hatchery_provisioner.ports import Transaction

_OUTCOMES: dict[str, type[InstanceOperationEnded]] = {
    "finished": InstanceOperationFinished,
    "failed": InstanceOperationFailed,
    "superseded": InstanceOperationSuperseded,
}


async def record(
    work: Transaction,
    before: Instance | None,
    after: Instance,
    *,
    limits: Limits,
    now_ms: int,
    ended: Sequence[Ended] = (),
    observed: bool = False,
) -> Instance:
    """Save `after`; with `observed` the open operation is closed if the status, which was just looked at, is its goal."""
    if observed:
        after, finished = finish(after, derive(after))
        ended = (*ended, *finished)
    after = settle(before, after, limits, now_ms)
    await work.save(after)
    if is_told(before, after):
        event = STATUS_EVENTS[after.status](
            tenant=after.tenant, instance_id=after.instance_id, state=public_state(after)
        )
        under_way = before.operation if before is not None else None  # it may end by this very change
        await work.emit(event, operation_id=under_way.id if under_way else None)
    await report(work, after.tenant, after.instance_id, ended)
    return after


async def report(work: Transaction, tenant: str, instance_id: str, ended: Sequence[Ended]) -> None:
    """Emit the terminal event of each ended operation: once, whoever claims its end again under another message."""
    for one in ended:
        event = _OUTCOMES[one.outcome](
            tenant=tenant,
            instance_id=instance_id,
            operation_id=one.operation.id,
            generation=one.operation.generation,
            reason=one.reason,
            message=one.message,
        )
        event_id = f"{tenant}-{instance_id}-{one.operation.id}-ended"
        await work.emit(event, id=event_id, operation_id=one.operation.id)


async def put_route(work: Transaction, instance: Instance, state: RouteState, now_ms: int) -> Instance:
    """Move the route to a state under the next version; the caller saves the instance in the same transaction."""
    moved = instance.evolve(route_state=state, route_version=instance.route_version + 1)
    machine = instance.machine if state is not RouteState.GONE else None
    route = Route(
        instance_id=instance.instance_id,
        tenant=instance.tenant,
        name=instance.name,
        state=state,
        route_version=moved.route_version,
        generation=instance.generation,
        machine_id=machine.machine_id if machine else None,
        endpoint=machine.endpoint if machine else None,
        controller=machine.controller if machine else None,
        endpoint_uid=machine.endpoint_uid if machine else None,
        controller_uid=machine.controller_uid if machine else None,
        changed_at_ms=now_ms,
    )
    await work.put_route(route)
    return moved
