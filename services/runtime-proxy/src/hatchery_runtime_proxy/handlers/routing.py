"""Keeps the table of routes: every put as it comes, everything again each 30 s and after each reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import DependencyUnavailable

from hatchery_runtime_proxy.domain.table import RouteTable

_CLOSED = (RouteState.STOPPING, RouteState.STOPPED, RouteState.GONE)
_RETRY_S = 1.0


class RouteKeeper:
    """Feeds one table; `closed` hears of each machine whose route is no longer open."""

    def __init__(
        self,
        table: RouteTable,
        snapshot: Callable[[], Awaitable[dict[str, Route]]],
        closed: Callable[[str], Awaitable[None]],
        *,
        every_s: float = 30.0,
    ) -> None:
        self._table, self._snapshot, self._closed, self._every = table, snapshot, closed, every_s
        self._again = asyncio.Event()
        self._dropping: set[asyncio.Task[None]] = set()
        self.problem: str | None = "the routes have not been read yet"

    def heard(self, route: Route) -> None:
        """A put."""
        before = self._table.of_instance(route.instance_id)
        if self._table.apply(route) and before is not None:
            self._tell(before)

    def reread(self) -> None:
        """Read everything again soon (after a reconnect)."""
        self._again.set()

    async def run(self) -> None:
        """Read everything, again and again; a failure is retried and shown in /readyz."""
        while True:
            pause = self._every
            try:
                await self._read_all()
            except DependencyUnavailable as error:
                self.problem = f"the routes cannot be read: {error.message}"
                pause = _RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()
            self._again.clear()

    def age_s(self) -> float:
        """Seconds since everything was read; -1 before the first time."""
        return -1.0 if self._table.refreshed_at is None else time.monotonic() - self._table.refreshed_at

    async def check(self) -> str | None:
        """What /readyz says of the table."""
        if self._table.refreshed_at is None:
            return self.problem
        age = self.age_s()
        return (
            None if age <= 3 * self._every else f"the routes are {age:.0f} s old ({self.problem or 'no reason known'})"
        )

    async def _read_all(self) -> None:
        mark = self._table.mark()
        routes = await self._snapshot()
        for before in self._table.refresh(routes.values(), mark, time.monotonic()):
            self._tell(before)
        self.problem = None

    def _tell(self, before: Route) -> None:
        """A route no longer holds: what may go on to its machine depends on the one that took its place, if one did."""
        after = self._table.of_instance(before.instance_id)
        still_open = after is not None and after.machine_id == before.machine_id and after.state not in _CLOSED
        if before.machine_id is None or still_open:
            return
        task = asyncio.ensure_future(self._closed(before.machine_id))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)
