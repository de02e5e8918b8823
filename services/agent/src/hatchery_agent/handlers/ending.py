"""The end of a run: the log first, then rows and facts; also for runs that nobody will answer any more."""

from __future__ import annotations

from typing import Any

from hatchery_common.bus import Delivery
from hatchery_common.clock import to_ms
from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType

from hatchery_agent.domain.decisions import Ending, Failed, Finished
from hatchery_agent.domain.errors import MessageExpired
from hatchery_agent.domain.folding import RunState
from hatchery_agent.handlers.leasing import hold_thread
from hatchery_agent.handlers.workbench import RunTools
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import Lease, RunRow

MAX_ANSWER = 400_000  # bytes; one entry, with what JSON escapes, must fit into one message of the bus
ABANDONED = Failed("abandoned", "This message was not answered, and nobody works on it any more. Please retry.")
UNDELIVERABLE = Failed("undeliverable", "This message could not be worked on. Please send it again.")
NEVER_POSTED = Failed(MessageExpired.code, "This message was stored but never posted. Please send it again.")


async def close_run(
    row: RunRow, ending: Failed, *, tools: RunTools, patience_s: float | None = None, untouched: bool = False
) -> bool:
    """End a run that no worker will bring to an end, in its thread and as a fact; raises ThreadBusy when one does work.

    False when there is nothing to end: it has ended, or has been parked since `row` was read; with `untouched` also when anybody
    has done something for it since.
    """
    ended, left_open = False, False

    async def work(lease: Lease) -> None:
        nonlocal ended, left_open
        fresh = await tools.runs.load(row.tenant, row.run_id)
        if (fresh.parked and not row.parked) or (untouched and fresh.touched_at != row.touched_at):
            return
        writer = ThreadWriter(tools.log, lease, tools.clock)
        await writer.open(fresh.quiet)
        if fresh.ended and row.run_id not in writer.state.runs:
            return
        await queue_message(fresh, writer)
        run = writer.state.runs[row.run_id]
        if not run.ended:
            await append_end(run, ending, writer, began_ms=to_ms(tools.clock.now()))
            ended = True
        await settle(fresh, run, writer, None, tools)
        left_open = bool(writer.state.open_runs)

    leases, lease_s = tools.leases, tools.lease_s
    await hold_thread(work, row.tenant, row.thread_id, leases=leases, lease_s=lease_s, patience_s=patience_s)
    if left_open:
        tools.wake.set()
    return ended


async def queue_message(row: RunRow, writer: ThreadWriter) -> None:
    """Put the message into the log unless it is there: one atomic batch."""
    if row.run_id in writer.state.runs:
        return
    entries: list[ThreadEntry] = []
    if writer.state.last == 0:
        entries.append(writer.entry(ThreadEntryType.THREAD_CREATED, instance_id=row.instance_id))
    text = row.text or ""
    message = writer.entry(ThreadEntryType.MESSAGE_USER, row.run_id, message_id=row.message_id, text=text)
    await writer.append(*entries, message, writer.entry(ThreadEntryType.RUN_QUEUED, row.run_id))


async def append_end(run: RunState, ending: Ending, writer: ThreadWriter, *, began_ms: int) -> None:
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


async def settle(
    row: RunRow, run: RunState, writer: ThreadWriter, cause: Delivery[Any] | None, tools: RunTools
) -> None:
    """Let row and fact follow the log; those that waited behind this run in its thread are due now."""
    quiet = None if writer.state.open_runs else writer.state.last
    await tools.runs.settle(row, writer.lease, run, quiet=quiet, cause=cause)
