"""The job of a posted message: one answer per run in the thread's log, whatever dies on the way.

The accepted command is the job. A worker holds the thread, folds its log, ends every open run that an earlier worker left
behind (oldest first), then its own; rows, facts and the acknowledgement follow the log.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hatchery_common.bus import Delivery
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import PostMessage, ThreadEntry, ThreadEntryType
from hatchery_common.errors import InvalidInput, NotFound
from hatchery_common.failpoints import reach

from hatchery_agent.domain.decisions import Ending, Failed, Finished, Lost, Step, next_step
from hatchery_agent.domain.folding import RunState
from hatchery_agent.handlers.leasing import hold_thread
from hatchery_agent.handlers.turns import Turn, TurnLimits
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import Lease, Leases, Log, RunRow, Runs, RuntimeTurns

MAX_ANSWER = 400_000  # bytes; one entry, with what JSON escapes, must fit into one message of the bus
_ABANDONED = Failed("abandoned", "This message was not answered, and nobody works on it any more. Please retry.")


@dataclass(frozen=True)
class RunTools:
    """Everything a worker works with."""

    log: Log
    leases: Leases
    runs: Runs
    runtime: RuntimeTurns
    clock: Clock
    slots: asyncio.Semaphore
    limits: TurnLimits = field(default_factory=TurnLimits)
    lease_s: float = 15
    max_attempts: int = 5


async def answer_message(delivery: Delivery[PostMessage], *, tools: RunTools) -> None:
    """Bring the run of this command to its one end; returns only when the log, the rows and the outbox hold it."""
    command = delivery.message
    row = await tools.runs.load(command.tenant, command.run_id)
    if (row.thread_id, row.instance_id) != (command.thread_id, command.instance_id):
        raise InvalidInput("the command names another thread or instance than its run", run_id=row.run_id)
    if row.ended:
        return
    async with tools.slots:
        work = partial(_work, row=row, cause=delivery, tools=tools)
        await hold_thread(work, row.tenant, row.thread_id, leases=tools.leases, lease_s=tools.lease_s)
    reach("agent.before_ack")


async def close_stale_run(row: RunRow, *, tools: RunTools) -> None:
    """End a run whose command is lost or dead, so that no thread stays at work for ever."""

    async def work(lease: Lease) -> None:
        writer = ThreadWriter(tools.log, lease, tools.clock)
        await writer.open(row.quiet)
        run = writer.state.runs.get(row.run_id)
        if run is None:
            return
        if not run.ended:
            await _append_end(run, _ABANDONED, writer, began_ms=to_ms(tools.clock.now()))
        await _settle(row, run, writer, None, tools)

    await hold_thread(work, row.tenant, row.thread_id, leases=tools.leases, lease_s=tools.lease_s)


async def _work(lease: Lease, *, row: RunRow, cause: Delivery[PostMessage], tools: RunTools) -> None:
    row = await tools.runs.load(row.tenant, row.run_id)  # again: another worker may have ended it while we waited
    if row.ended:
        return
    writer = ThreadWriter(tools.log, lease, tools.clock)
    await writer.open(row.quiet)
    for run in [run for run in writer.state.open_runs if run.run_id != row.run_id]:
        await _finish_older(run, writer, cause, tools)
    await _queue(row, writer)
    await tools.runs.queued(row.run_id)
    reach("agent.after_queue_append")
    await _finish(row, writer.state.runs[row.run_id], writer, cause, tools)


async def _finish_older(run: RunState, writer: ThreadWriter, cause: Delivery[PostMessage], tools: RunTools) -> None:
    """End a run that another worker left open; its own command, when it comes again, finds it ended."""
    try:
        older = await tools.runs.load(writer.lease.tenant, run.run_id)
    except NotFound:  # the database is older than the log: it was restored
        await _append_end(run, _ABANDONED, writer, began_ms=to_ms(tools.clock.now()))
        return
    await _finish(older, run, writer, replace(cause, id=run.run_id), tools)


async def _queue(row: RunRow, writer: ThreadWriter) -> None:
    """Put the message into the log unless it is there: one atomic batch."""
    if row.run_id in writer.state.runs:
        return
    entries: list[ThreadEntry] = []
    if writer.state.last == 0:
        entries.append(writer.entry(ThreadEntryType.THREAD_CREATED, instance_id=row.instance_id))
    text = row.text or ""
    message = writer.entry(ThreadEntryType.MESSAGE_USER, row.run_id, message_id=row.message_id, text=text)
    await writer.append(*entries, message, writer.entry(ThreadEntryType.RUN_QUEUED, row.run_id))


async def _finish(
    row: RunRow, run: RunState, writer: ThreadWriter, cause: Delivery[PostMessage], tools: RunTools
) -> None:
    """Attempt the run until the log holds its end, then let rows and facts follow."""
    began_ms = to_ms(tools.clock.now())
    while (step := next_step(run, max_attempts=tools.max_attempts)) is not Step.SETTLE:
        ending = _refusal(run, step) or await _attempt(row, run, writer, cause, tools, began_ms)
        if not isinstance(ending, Lost):
            reach("agent.before_end_append")
            await _append_end(run, ending, writer, began_ms=began_ms)
            reach("agent.after_end_append")
    await _settle(row, run, writer, cause, tools)


def _refusal(run: RunState, step: Step) -> Failed | None:
    if step is Step.GIVE_UP:
        return Failed("gave_up", f"{run.attempt} attempts at this answer broke off. Please retry.")
    if not run.question:
        return Failed("message_expired", "The text of this message was no longer there. Please send it again.")
    return None


async def _attempt(
    row: RunRow, run: RunState, writer: ThreadWriter, cause: Delivery[PostMessage], tools: RunTools, began_ms: int
) -> Ending | Lost:
    attempt = run.attempt + 1
    if attempt > 1:
        row = await tools.runs.load(row.tenant, row.run_id)  # its checkpoint tells whether OpenClaw took the turn
    await writer.append(writer.entry(ThreadEntryType.RUN_STARTED, run.run_id, attempt))
    await tools.runs.started(row, writer.lease, attempt, cause=cause)
    turn = Turn(row, run.question, attempt, writer, tools.runtime, tools.runs, tools.clock, tools.limits, began_ms)
    return await turn.perform()


async def _append_end(run: RunState, ending: Ending, writer: ThreadWriter, *, began_ms: int) -> None:
    """The answer and the run's end in one batch: a reader never sees one without the other."""
    duration_ms = max(0, to_ms(writer.clock.now()) - began_ms)
    if isinstance(ending, Failed):
        data = {"code": ending.code, "message": ending.message, "retryable": ending.retryable}
        failed = writer.entry(ThreadEntryType.RUN_FAILED, run.run_id, run.attempt, **data, duration_ms=duration_ms)
        await writer.append(failed)
        return
    usage = _usage(ending)
    text = ending.text.encode()[:MAX_ANSWER].decode(errors="ignore")
    message = writer.entry(
        ThreadEntryType.MESSAGE_ASSISTANT,
        run.run_id,
        run.attempt,
        text=text,
        truncated=text != ending.text,
        usage=usage,
    )
    figures = {"duration_ms": duration_ms, "first_text_ms": ending.first_text_ms, "usage": usage}
    await writer.append(message, writer.entry(ThreadEntryType.RUN_FINISHED, run.run_id, run.attempt, **figures))


def _usage(ending: Finished) -> dict[str, Any]:
    return {"input_tokens": ending.usage.input_tokens, "output_tokens": ending.usage.output_tokens}


async def _settle(
    row: RunRow, run: RunState, writer: ThreadWriter, cause: Delivery[PostMessage] | None, tools: RunTools
) -> None:
    quiet = None if writer.state.open_runs else writer.state.last
    await tools.runs.settle(row, writer.lease, run, quiet=quiet, cause=cause)
