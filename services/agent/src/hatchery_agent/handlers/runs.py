"""The job of a posted message: one answer per run in the thread's log, whatever dies on the way.

The accepted command is the job, or the run's row once the run was parked because its instance is still on its way. A worker
holds the thread, folds its log, ends every open run that was there before (oldest first), then its own; rows, facts and the
acknowledgement follow the log.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

from hatchery_common.bus import Delivery
from hatchery_common.clock import to_ms
from hatchery_common.contracts.threads import PostMessage, ThreadEntryType
from hatchery_common.errors import InvalidInput, NotFound
from hatchery_common.failpoints import reach

from hatchery_agent.domain.decisions import Ending, Failed, Lost, Step, Waits, next_step
from hatchery_agent.domain.folding import RunState
from hatchery_agent.domain.waiting import WAITING_PHASE
from hatchery_agent.handlers.ending import ABANDONED, append_end, queue_message, settle
from hatchery_agent.handlers.leasing import hold_thread
from hatchery_agent.handlers.turns import Turn
from hatchery_agent.handlers.workbench import RunTools
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import Lease, RunRow


async def answer_message(delivery: Delivery[PostMessage], *, tools: RunTools) -> None:
    """Bring the run of this command to its one end, or hand it over to its row; returns only when that is committed."""
    command = delivery.message
    row = await tools.runs.load(command.tenant, command.run_id)
    if row.ended or row.parked:
        return  # first, since the thread of an ended run may be bound to another instance by now
    if (row.thread_id, row.instance_id) != (command.thread_id, command.instance_id):
        raise InvalidInput("the command names another thread or instance than its run", run_id=row.run_id)
    work = partial(_work_in_a_slot, row=row, cause=delivery, tools=tools)
    left_open = await hold_thread(work, row.tenant, row.thread_id, leases=tools.leases, lease_s=tools.lease_s)
    if left_open:  # only now, since nobody takes up what is held
        tools.wake.set()
    reach("agent.before_ack")


async def resume_run(row: RunRow, *, tools: RunTools) -> None:
    """Go on with a parked run that is due; raises ThreadBusy when somebody else works in its thread."""
    async with tools.slots:  # outside the lease, for which it does not wait: what is due stays free for other replicas
        work = partial(_work, row=row, cause=None, tools=tools)
        leases, lease_s = tools.leases, tools.lease_s
        await hold_thread(work, row.tenant, row.thread_id, leases=leases, lease_s=lease_s, patience_s=0)


async def _work_in_a_slot(lease: Lease, *, row: RunRow, cause: Delivery[PostMessage], tools: RunTools) -> bool:
    """Who only waits for its thread takes no slot from those that could work."""
    async with tools.slots:
        return await _work(lease, row=row, cause=cause, tools=tools)


async def _work(lease: Lease, *, row: RunRow, cause: Delivery[PostMessage] | None, tools: RunTools) -> bool:
    """Whether the thread has open runs still: this one, which waits, or others behind it."""
    row = await tools.runs.load(row.tenant, row.run_id)  # again: another worker may have ended it while we waited
    if row.ended or (cause is None and not row.due):
        return False
    cause = cause or _cause(row, tools.clock.now())
    writer = ThreadWriter(tools.log, lease, tools.clock)
    await writer.open(row.quiet)
    for run in _before(row, writer):
        if not await _finish_older(run, writer, tools):
            await _wait_behind(row, writer, cause, tools)
            return True
    await _queue(row, writer, tools)
    await _finish(row, writer.state.runs[row.run_id], writer, cause, tools)
    return bool(writer.state.open_runs)


def _before(row: RunRow, writer: ThreadWriter) -> list[RunState]:
    """Open runs that the log had before this one."""
    ids = [run.run_id for run in writer.state.open_runs]
    place = ids.index(row.run_id) if row.run_id in ids else len(ids)
    return writer.state.open_runs[:place]


def _cause(row: RunRow, now: datetime) -> Delivery[PostMessage]:
    """The run's own command, as far as facts speak of it and the row kept it when the run was parked."""
    ids = {"tenant": row.tenant, "thread_id": row.thread_id, "run_id": row.run_id, "instance_id": row.instance_id}
    command = PostMessage(**ids, message_id=row.message_id)
    kind, kept = command.message_type(), row.cause
    return Delivery(
        message=command,
        id=str(kept.get("id") or row.run_id),
        type=kind,
        tenant=row.tenant,
        subject=command.subject,
        source="hatchery/agent",
        time=now,
        stream="CMD",
        sequence=0,
        correlation_id=kept.get("correlation_id"),
        traceparent=kept.get("traceparent"),
    )


async def _finish_older(run: RunState, writer: ThreadWriter, tools: RunTools) -> bool:
    """End a run that another worker left open; its own command, when it comes again, finds it ended. False when it waits."""
    try:
        older = await tools.runs.load(writer.lease.tenant, run.run_id)
    except NotFound:
        older = None
    if older is None or older.ended:  # the database and the log are of different times: one of them was restored
        await append_end(run, ABANDONED, writer, began_ms=to_ms(tools.clock.now()))
        return True
    return await _finish(older, run, writer, _cause(older, tools.clock.now()), tools)


async def _queue(row: RunRow, writer: ThreadWriter, tools: RunTools) -> None:
    await queue_message(row, writer)
    await tools.runs.queued(row.run_id)
    reach("agent.after_queue_append")


async def _wait_behind(row: RunRow, writer: ThreadWriter, cause: Delivery[PostMessage], tools: RunTools) -> None:
    """The log takes the message, so that it keeps its place; its turn comes after those before it."""
    await _queue(row, writer, tools)
    await tools.parking.park_behind(row, writer.lease, cause=cause)


async def _finish(
    row: RunRow, run: RunState, writer: ThreadWriter, cause: Delivery[PostMessage], tools: RunTools
) -> bool:
    """Attempt the run until the log holds its end, then let rows and facts follow; False when it waits for its instance."""
    since_ms = to_ms(tools.clock.now())
    began_ms = row.began_ms or since_ms
    while (step := next_step(run, max_attempts=tools.max_attempts)) is not Step.SETTLE:
        ending = _refusal(run, step) or await _attempt(row, run, writer, cause, tools, (began_ms, since_ms))
        if isinstance(ending, Waits):
            reach("agent.before_park")
            await tools.parking.park(row, writer.lease, began_ms=began_ms, look_s=ending.look_s, cause=cause)
            reach("agent.after_park")
            return False
        if not isinstance(ending, Lost):
            reach("agent.before_end_append")
            await append_end(run, ending, writer, began_ms=began_ms)
            reach("agent.after_end_append")
    await settle(row, run, writer, cause, tools)
    return True


def _refusal(run: RunState, step: Step) -> Failed | None:
    if step is Step.GIVE_UP:
        return Failed("gave_up", f"{run.attempt} attempts at this answer broke off. Please retry.")
    if not run.question:
        return Failed("message_expired", "The text of this message was no longer there. Please send it again.")
    return None


async def _attempt(
    row: RunRow,
    run: RunState,
    writer: ThreadWriter,
    cause: Delivery[PostMessage],
    tools: RunTools,
    times_ms: tuple[int, int],
) -> Ending | Lost | Waits:
    """One attempt; the one that waited for the instance goes on, since nothing was sent in it."""
    began_ms, since_ms = times_ms
    attempt, phase = run.attempt, WAITING_PHASE
    if not run.waiting:
        attempt, phase = attempt + 1, ""
        if attempt > 1:
            row = await tools.runs.load(row.tenant, row.run_id)  # its checkpoint tells whether OpenClaw took the turn
        await writer.append(writer.entry(ThreadEntryType.RUN_STARTED, run.run_id, attempt))
        await tools.runs.started(row, writer.lease, attempt, cause=cause)
    turn = Turn(
        row,
        run.question,
        attempt,
        writer,
        tools.runtime,
        tools.runs,
        tools.clock,
        tools.limits,
        began_ms,
        since_ms,
        phase,
    )
    return await turn.perform()
