"""The read side: instances, operations with their progress, threads' logs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from hatchery_common.contracts.threads import RUN_ENDS
from hatchery_common.errors import NotFound

from hatchery_api.domain.instances import Sight
from hatchery_api.domain.operations import Operation, OperationEvent
from hatchery_api.domain.threads import Resume, Snapshot, fold, resume
from hatchery_api.ports import Changes, Logged, Reads, Run, Store, ThreadLogs

_PAGE = 100
_LOOK_AGAIN_S = 1.0  # another replica may have written: its news does not reach this process
HEARTBEAT_S = 10.0


async def look(reads: Reads, tenant: str, name: str) -> Sight:
    """All that is known of the instance under this name."""
    claim = await reads.claims.find(tenant, name)
    if claim is None:
        return Sight(None, None, None)
    state = await reads.instances.find(claim.instance_id)
    return Sight(claim, state, await reads.operations.newest(claim.instance_id))


async def instance(tenant: str, name: str, *, store: Store) -> Sight:
    """The tenant's instance of this name."""
    async with store.read() as reads:
        return await look(reads, tenant, name)


async def instances(tenant: str, *, store: Store) -> list[Sight]:
    """All instances of the tenant, oldest first."""
    async with store.read() as reads:
        return [await look(reads, tenant, claim.name) for claim in await reads.claims.all_of(tenant)]


async def operation(tenant: str, operation_id: str, *, store: Store) -> Operation:
    """One operation of the tenant; raises NotFound for another's too."""
    async with store.read() as reads:
        found = await reads.operations.find(tenant, operation_id)
    if found is None:
        raise NotFound("there is no such operation")
    return found


@dataclass(frozen=True, slots=True)
class Progress:
    """An operation with a page of its events; `last_event` is the number of its newest one."""

    operation: Operation
    events: Sequence[OperationEvent]
    last_event: int


async def progress(tenant: str, operation_id: str, after: int | None, limit: int, *, store: Store) -> Progress:
    """The operation and its events after this number, or without one its newest; raises NotFound for another's too."""
    async with store.read() as reads:
        found = await reads.operations.find(tenant, operation_id)
        if found is None:
            raise NotFound("there is no such operation")
        last = await reads.operations.last_event(operation_id)
        events = await reads.operations.events(operation_id, max(0, last - limit) if after is None else after, limit)
    return Progress(found, events, max([last, *(event.number for event in events)]))


async def last_event(operation_id: str, *, store: Store) -> int:
    """The number of the operation's newest event."""
    async with store.read() as reads:
        return await reads.operations.last_event(operation_id)


async def run(tenant: str, run_id: str, *, store: Store) -> Run:
    """One run of the tenant; raises NotFound."""
    async with store.read() as reads:
        found = await reads.runs.find(tenant, run_id)
    if found is None:
        raise NotFound("there is no such run")
    return found


async def follow_operation(
    operation_id: str, after: int, *, store: Store, changes: Changes, heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[OperationEvent | None]:
    """The operation's events after this number until its terminal one; None as a heartbeat in silence."""
    silent_s = 0.0
    async with changes.watch(operation_id) as watch:
        while True:
            async with store.read() as reads:
                events = await reads.operations.events(operation_id, after, _PAGE)
            for event in events:
                yield event
                after, silent_s = event.number, 0.0
                if event.is_last:
                    return
            if events:
                continue
            pause = min(_LOOK_AGAIN_S, heartbeat_s)
            silent_s = 0.0 if await watch.wait(pause) else silent_s + pause
            if silent_s >= heartbeat_s:
                silent_s = 0.0
                yield None


@dataclass(frozen=True, slots=True)
class Reset:
    """The reader's place is not in the log: begin anew from this snapshot."""

    reason: Resume
    snapshot: Snapshot


async def follow_thread(
    tenant: str, thread_id: str, last_event_id: str | None, *, logs: ThreadLogs
) -> AsyncGenerator[Logged | Reset | None]:
    """A thread's log from the reader's place on, without end; first a Reset where that place is not in it."""
    first, last = await logs.bounds(tenant, thread_id)
    how, after = resume(last_event_id, first, last)
    if how not in {Resume.FROM_START, Resume.AFTER}:
        snapshot = await snapshot_of(tenant, thread_id, logs=logs)
        after = snapshot.sequence
        yield Reset(how, snapshot)
    async with aclosing(logs.follow(tenant, thread_id, after)) as entries:
        async for logged in entries:
            yield logged


async def snapshot_of(tenant: str, thread_id: str, *, logs: ThreadLogs) -> Snapshot:
    """The thread's messages as of now."""
    async with aclosing(logs.read(tenant, thread_id)) as entries:
        log = [(one.sequence, one.entry) async for one in entries]
    return fold(log)


async def follow_run(
    tenant: str, thread_id: str, run_id: str, after: int, *, logs: ThreadLogs
) -> AsyncGenerator[Logged | None]:
    """The entries of one run until it ends; None as a heartbeat."""
    async with aclosing(logs.follow(tenant, thread_id, after)) as entries:
        async for logged in entries:
            if logged is None or logged.entry.run_id == run_id:
                yield logged
            if logged is not None and logged.entry.run_id == run_id and logged.entry.type in RUN_ENDS:
                return
