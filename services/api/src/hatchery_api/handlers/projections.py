"""Read models from events: instances, operations and runs. Each event has its effect once, by the inbox."""

from __future__ import annotations

from typing import Any

from hatchery_common.bus.delivery import Delivery
from hatchery_common.clock import to_ms
from hatchery_common.contracts.instances import InstanceDeleted, InstanceEvent, InstanceState
from hatchery_common.contracts.operations import InstanceOperationEnded, InstanceStep
from hatchery_common.contracts.threads import RunEvent, RunFailed, RunFinished

from hatchery_api.domain.operations import ENDS, Operation, began, ended
from hatchery_api.ports import Changes, Run, Store, Work


async def project_instance(delivery: Delivery[InstanceEvent], *, store: Store, changes: Changes) -> None:
    """Keep the instance's newest state, tell its operation, and release the claim when nothing of it is left."""
    event = delivery.message
    at_ms = to_ms(delivery.time)
    async with store.begin(delivery) as work:
        if not await work.first_delivery():
            return
        if not await work.instances.put(event.state):
            return  # an older version than the one held
        if isinstance(event, InstanceDeleted):
            await work.claims.release(event.instance_id)
        noted = await _note_status(work, event.state, at_ms)
    if noted:
        changes.notify(noted)


async def _note_status(work: Work, state: InstanceState, at_ms: int) -> str | None:
    operation = await _open(work, state.operation_id, state.tenant)
    if operation is None:
        return None
    await work.operations.save(began(operation, at_ms))
    data = state.model_dump(
        mode="json", include={"status", "since_ms", "deadline_ms", "reason", "message", "waiting_for", "version"}
    )
    await work.operations.note(operation.operation_id, "status", at_ms, data)
    return operation.operation_id


async def note_step(delivery: Delivery[InstanceStep], *, store: Store, changes: Changes) -> None:
    """Add a step to its operation's progress; one that arrives after the end is left out."""
    event = delivery.message
    at_ms = to_ms(delivery.time)
    async with store.begin(delivery) as work:
        operation = await _newly_told(work, event)
        if operation is None:
            return
        await work.operations.save(began(operation, at_ms))
        data = event.model_dump(mode="json", exclude={"tenant", "instance_id", "operation_id"})
        await work.operations.note(operation.operation_id, event.verb, at_ms, data)
    changes.notify(operation.operation_id)


async def end_operation(delivery: Delivery[InstanceOperationEnded], *, store: Store, changes: Changes) -> None:
    """Record the operation's one end."""
    event = delivery.message
    at_ms = to_ms(delivery.time)
    async with store.begin(delivery) as work:
        operation = await _newly_told(work, event)
        if operation is None:
            return
        closed = ended(operation, ENDS[type(event)], event.reason, event.message, at_ms)
        await work.operations.save(closed)
        data: dict[str, Any] = {"reason": closed.reason, "message": closed.message, "error": closed.error}
        await work.operations.note(closed.operation_id, closed.state.value, at_ms, data)
    changes.notify(event.operation_id)


async def _newly_told(work: Work, event: InstanceStep | InstanceOperationEnded) -> Operation | None:
    """The open operation of an event; None also for one that was delivered before."""
    return await _open(work, event.operation_id, event.tenant) if await work.first_delivery() else None


async def _open(work: Work, operation_id: str | None, tenant: str) -> Operation | None:
    """The tenant's open operation, locked; None for an unknown one (a wake has none of ours) or one that has ended."""
    operation = await work.operations.lock(operation_id) if operation_id else None
    return operation if operation is not None and operation.tenant == tenant and operation.is_open else None


async def project_run(delivery: Delivery[RunEvent], *, store: Store) -> None:
    """Keep where the run stands."""
    event = delivery.message
    at_ms = event.at_ms or to_ms(delivery.time)
    status = "finished" if isinstance(event, RunFinished) else "failed" if isinstance(event, RunFailed) else "running"
    code = event.code if isinstance(event, RunFailed) else None
    async with store.begin(delivery) as work:
        if await work.first_delivery():
            run = Run(
                event.run_id,
                event.tenant,
                event.thread_id,
                event.instance_id,
                status,
                event.attempt,
                at_ms,
                at_ms,
                code,
            )
            await work.runs.put(run)
