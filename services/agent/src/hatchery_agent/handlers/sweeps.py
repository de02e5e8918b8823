"""What the owner of the agent looks after: texts nobody posted, runs nobody works on."""

from __future__ import annotations

from hatchery_common.errors import NotFound
from structlog.typing import FilteringBoundLogger

from hatchery_agent.domain.errors import ThreadBusy
from hatchery_agent.handlers.runs import RunTools, close_stale_run
from hatchery_agent.ports import Housekeeping


async def sweep(
    *, rows: Housekeeping, tools: RunTools, orphan_text_s: int, stale_s: int, log: FilteringBoundLogger
) -> None:
    """One round: drop orphaned texts, end abandoned runs; each is reported."""
    dropped = await rows.drop_orphans(orphan_text_s)
    if dropped:
        log.info("agent.drop_orphans.done", dropped=dropped)
    for row in await rows.stale(stale_s):
        try:
            await close_stale_run(row, tools=tools)
        except (ThreadBusy, NotFound):
            continue  # somebody works on it after all, or it is gone
        log.warning("agent.close_stale_run.done", run_id=row.run_id, thread_id=row.thread_id)
