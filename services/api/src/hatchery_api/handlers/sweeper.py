"""The owner's periodic duty: mark overdue operations (never guess their end) and forget old idempotency keys."""

from __future__ import annotations

from hatchery_common.clock import Clock, to_ms

from hatchery_api.domain.operations import KEEP_KEYS_MS, marked_overdue
from hatchery_api.ports import Changes, Store

EVERY_S = 5.0
_BATCH = 100


async def mark_overdue(*, store: Store, clock: Clock, changes: Changes, epoch: int | None = None) -> int:
    """Mark operations past their deadline; returns how many."""
    now_ms = to_ms(clock.now())
    async with store.begin(epoch=epoch) as work:
        due = await work.operations.due(now_ms, _BATCH)
        for operation in due:
            await work.operations.save(marked_overdue(operation, now_ms))
            data = {"deadline_ms": operation.deadline_ms, "waiting_for": "provisioner"}
            await work.operations.note(operation.operation_id, "overdue", now_ms, data)
    for operation in due:
        changes.notify(operation.operation_id)
    return len(due)


async def forget_keys(*, store: Store, clock: Clock, epoch: int | None = None) -> int:
    """Forget idempotency keys older than 30 days; returns how many."""
    async with store.begin(epoch=epoch) as work:
        return await work.keys.forget(to_ms(clock.now()) - KEEP_KEYS_MS)
