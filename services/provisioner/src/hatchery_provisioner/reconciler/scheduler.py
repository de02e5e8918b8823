"""Keeps one lane for every instance with work left, and restarts a lane that broke."""

from __future__ import annotations

import asyncio

from hatchery_common.errors import DependencyUnavailable, OwnershipLost
from hatchery_common.owner import Ownership
from hatchery_common.timers import Wake

from hatchery_provisioner.reconciler.lane import Lane
from hatchery_provisioner.reconciler.workbench import Tools, Workbench

_POLL_S = 1.0
_BROKEN_PAUSE_S = 2.0


class Reconciler:
    """The owner's loop over all instances."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._wake = Wake()
        self._lanes: dict[str, tuple[Lane, asyncio.Task[None]]] = {}
        self._not_before: dict[str, float] = {}
        self._inherited: set[str] | None = None  # not known before the first look at the rows

    def poke(self, instance_id: str) -> None:
        """A wish was committed: look at this instance now."""
        found = self._lanes.get(instance_id)
        if found is not None:
            found[0].bench.wake.set()
        self._wake.set()

    async def run(self, ownership: Ownership) -> None:
        """Run until cancelled; ends by DependencyUnavailable when this process is no longer the owner."""
        self._inherited = None
        try:
            while True:
                await self._start_lanes(ownership.epoch)
                await self._wake.wait(_POLL_S)
                self._reap()
        finally:
            await self._end_lanes()

    async def _start_lanes(self, epoch: int) -> None:
        try:
            pending = await self._tools.store.pending()
        except DependencyUnavailable as error:
            self._tools.log.warning("provisioner.reconciler.waiting", reason=error.message)
            return
        if self._inherited is None:
            self._inherited = {due.instance_id for due in pending}
        now = asyncio.get_running_loop().time()
        for due in pending:
            held = self._lanes.get(due.instance_id)
            if held is not None:
                if due.generation > held[0].generation:
                    held[0].bench.wake.set()  # accepted by another replica
            elif self._not_before.get(due.instance_id, 0.0) <= now:
                self._not_before.pop(due.instance_id, None)
                self._start_lane(due.instance_id, epoch, inherited=due.instance_id in self._inherited)

    def _start_lane(self, instance_id: str, epoch: int, *, inherited: bool) -> None:
        lane = Lane(Workbench(self._tools, instance_id, epoch), inherited=inherited)
        task = asyncio.create_task(lane.run(), name=f"lane-{instance_id}")
        task.add_done_callback(lambda _: self._wake.set())
        self._lanes[instance_id] = (lane, task)

    def _reap(self) -> None:
        """Take ended lanes away; a broken one is started again after a pause, and others go on meanwhile."""
        for instance_id, (lane, task) in list(self._lanes.items()):
            if not task.done():
                continue
            del self._lanes[instance_id]
            if self._inherited is not None and not lane.inherited:
                self._inherited.discard(instance_id)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, OwnershipLost):
                raise DependencyUnavailable(error.message)
            if error is not None:
                known = isinstance(error, DependencyUnavailable)
                self._tools.log.error(
                    "provisioner.lane.broken",
                    instance_id=instance_id,
                    reason=str(error),
                    exc_info=None if known else error,
                )
                self._not_before[instance_id] = asyncio.get_running_loop().time() + _BROKEN_PAUSE_S

    async def _end_lanes(self) -> None:
        tasks = [task for _, task in self._lanes.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10)
        self._lanes.clear()
