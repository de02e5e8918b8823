"""Parked runs: woken by their instance's events, else by time; taken up where a worker is free."""

from __future__ import annotations

import asyncio
from typing import Any

from hatchery_common.bus import Delivery
from hatchery_common.clock import Clock
from hatchery_common.contracts.instances import InstanceEvent
from hatchery_common.errors import DependencyUnavailable, HatcheryError, Retry
from hatchery_common.timers import Wake
from structlog.typing import FilteringBoundLogger

from hatchery_agent.domain.errors import LeaseLost, ThreadBusy
from hatchery_agent.handlers.ending import ABANDONED, close_run
from hatchery_agent.handlers.runs import resume_run
from hatchery_agent.handlers.workbench import RunTools
from hatchery_agent.ports import Parking, RunRow

_IDLE_S = 5.0  # runs that another replica made due
_AGAIN_S = 1.0
_DRAIN_S = 8.0  # the runner gives loops ten
_MOST_FAILURES = 10


async def wake_runs(
    delivery: Delivery[InstanceEvent], *, parking: Parking, wake: Wake, clock: Clock, horizon_s: float
) -> None:
    """An instance has news: let its parked runs look. News older than any wait concerns nobody."""
    event = delivery.message
    if (clock.now() - delivery.time).total_seconds() > horizon_s:
        return
    if await parking.wake(event.tenant, event.instance_id):
        wake.set()


class ParkedRuns:
    """Takes up parked runs that are due, one of each thread, as many at a time as there are slots."""

    def __init__(self, tools: RunTools, log: FilteringBoundLogger, *, limit: int) -> None:
        self._tools, self._log, self._limit = tools, log, limit
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}

    async def run(self) -> None:
        """For ever; those at work when it is cancelled may end for a while, then go back to their rows."""
        try:
            while True:
                await self._tools.wake.wait(await self._take_up())
        finally:
            await self._drain()

    async def _take_up(self) -> float:
        """Start what is due; returns the seconds until something may be due again."""
        try:
            for row in await self._tools.parking.due(self._limit):
                if row.thread_id not in self._at_work:
                    self._start(row)
            next_s = await self._tools.parking.next_due_s()
        except DependencyUnavailable as error:
            self._log.warning("agent.parked.waiting", reason=error.message)
            return _AGAIN_S
        return _IDLE_S if next_s is None else min(next_s, _IDLE_S)

    def _start(self, row: RunRow) -> None:
        task = asyncio.create_task(self._resume(row), name=row.run_id)
        self._at_work[row.thread_id] = task

        def done(_: Any) -> None:
            del self._at_work[row.thread_id]
            self._tools.wake.set()

        task.add_done_callback(done)

    async def _resume(self, row: RunRow) -> None:
        try:
            await resume_run(row, tools=self._tools)
            self._failures.pop(row.run_id, None)
        except (ThreadBusy, LeaseLost):
            return  # another worker has the thread
        except DependencyUnavailable as error:
            self._log.warning("agent.parked.postponed", run_id=row.run_id, reason=error.message)
            await self._postpone(row, _AGAIN_S)
        except Exception as error:  # noqa: BLE001 - one broken run must not stop the others, as on the bus
            self._log.exception("agent.parked.failed", run_id=row.run_id)
            await self._count(row, error)

    async def _count(self, row: RunRow, error: Exception) -> None:
        """What fails for good, or again and again, is given up: the row would come back for ever."""
        failures = self._failures[row.run_id] = self._failures.get(row.run_id, 0) + 1
        await self._postpone(row, _AGAIN_S * failures)
        never = isinstance(error, HatcheryError) and error.retry is Retry.NEVER
        if never or failures >= _MOST_FAILURES:
            try:
                await close_run(row, ABANDONED, tools=self._tools)
                self._failures.pop(row.run_id, None)
            except Exception as again:  # noqa: BLE001 - as above: its row comes back
                self._log.error("agent.parked.not_closed", run_id=row.run_id, reason=f"{type(again).__name__}: {again}")

    async def _postpone(self, row: RunRow, delay_s: float) -> None:
        try:
            await self._tools.parking.postpone(row.thread_id, delay_s)
        except DependencyUnavailable:
            await asyncio.sleep(_AGAIN_S)  # the row is due all the time: do not come back at once

    async def _drain(self) -> None:
        tasks = list(self._at_work.values())
        if not tasks:
            return
        _, rest = await asyncio.wait(tasks, timeout=_DRAIN_S)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
