"""What the owner of the agent looks after, and what dead letters leave behind: every run has an end that its thread shows."""

from __future__ import annotations

from hatchery_common.errors import DependencyUnavailable, NotFound
from structlog.typing import FilteringBoundLogger

from hatchery_agent.domain.decisions import Failed
from hatchery_agent.domain.errors import ThreadBusy
from hatchery_agent.handlers.ending import ABANDONED, NEVER_POSTED, UNDELIVERABLE, close_run
from hatchery_agent.handlers.workbench import RunTools
from hatchery_agent.ports import Housekeeping, RunRow

BACKLOG_S = 3600.0  # for how long after a standstill old commands may still come out of the stream


async def sweep(
    *,
    rows: Housekeeping,
    tools: RunTools,
    orphan_text_s: int,
    stale_s: int,
    owned_s: float,
    log: FilteringBoundLogger,
) -> None:
    """One round: end runs whose text was never posted, and abandoned ones; each is reported.

    Age alone does not tell that a command is lost: after a standstill the old ones wait in the stream, and come first. So
    nothing is ended before its owner has been one (`owned_s`) for a while.
    """
    if owned_s < BACKLOG_S:
        return
    for row in await rows.orphans(orphan_text_s):
        await _close(row, NEVER_POSTED, tools=tools, log=log)
    for row in await rows.stale(stale_s):
        await _close(row, ABANDONED, tools=tools, log=log)


async def _close(row: RunRow, ending: Failed, *, tools: RunTools, log: FilteringBoundLogger) -> None:
    try:
        ended = await close_run(row, ending, tools=tools, untouched=True)
    except (ThreadBusy, NotFound):
        return  # somebody works on it after all, or it is gone
    except Exception:  # one broken run must not end the round, nor what the owner does besides it
        log.exception("agent.close_run.failed", run_id=row.run_id, thread_id=row.thread_id)
        return
    if ended:
        log.warning("agent.close_run.done", run_id=row.run_id, thread_id=row.thread_id, code=ending.code)


async def end_dead_run(
    message_id: str, _message_type: str, *, rows: Housekeeping, tools: RunTools, log: FilteringBoundLogger
) -> None:
    """A command went to the dead letters (its id is its run's): end the run, so that its thread does not wait for nothing.

    Safe to repeat, and repeated while something it leans on is away: the dead letter is acknowledged afterwards. What fails for
    good is logged and left to the sweep.
    """
    row = await rows.find(message_id)
    if row is None or row.ended or row.parked:
        return
    try:
        ended = await close_run(row, UNDELIVERABLE, tools=tools, patience_s=0)
    except DependencyUnavailable:
        raise
    except Exception:  # repeating does not help, and would hold up the letters behind it
        log.exception("agent.end_dead_run.failed", run_id=row.run_id, thread_id=row.thread_id)
        return
    if ended:
        log.error("agent.end_dead_run.done", run_id=row.run_id, thread_id=row.thread_id)
