"""Finds what carries our labels and has no row, or runs although its instance is at rest.

Reported at first sight, repaired at the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hatchery_common.clock import to_ms
from hatchery_common.errors import DependencyUnavailable, OwnershipLost
from hatchery_common.owner import Ownership
from prometheus_client import CollectorRegistry, Gauge

from hatchery_provisioner.domain.errors import DriverError
from hatchery_provisioner.ports import MachineRef, Owned
from hatchery_provisioner.reconciler.records import record
from hatchery_provisioner.reconciler.workbench import Tools


class Sweeper:
    """The sweep over a driver; ghosts, the other direction, are found by the looks of their lanes."""

    def __init__(self, tools: Tools, metrics: CollectorRegistry, *, every_s: float = 60.0) -> None:
        self._tools = tools
        self._every_s = every_s
        self._seen: set[tuple[str, str | None]] = set()
        self._restless: set[str] = set()
        self._orphans = Gauge("hatchery_provisioner_orphans", "labelled ours, without a row", registry=metrics)

    async def run(self, ownership: Ownership) -> None:
        """Sweep for ever; the first sweep comes after a pause, when adoption has settled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                async with asyncio.timeout(self._every_s):
                    await self.sweep(ownership.epoch)
            except (DriverError, DependencyUnavailable, TimeoutError) as error:
                self._tools.log.warning("provisioner.sweep.failed", reason=str(error))
            except OwnershipLost:
                raise
            except Exception:  # a fault in one sweep must not end the lanes beside it
                self._tools.log.exception("provisioner.sweep.broken")

    async def sweep(self, epoch: int | None = None) -> list[Owned]:
        """One sweep; returns the orphans that were seen."""
        owned = await self._tools.driver.list_owned()
        known = await self._tools.store.known_machines()
        strangers = [one for one in owned if one.machine_id is not None and one.machine_id not in known]
        left = await self._left_storage(owned)
        orphans = [*strangers, *left]
        self._orphans.set(len(orphans))
        for one in orphans:
            key = (one.instance_id, one.machine_id)
            if key in self._seen:
                await self._repair(one)
            else:
                self._tools.log.warning(
                    "provisioner.orphan.found", instance_id=one.instance_id, machine_id=one.machine_id
                )
        self._seen = {(one.instance_id, one.machine_id) for one in orphans}
        await self._unrest({one.instance_id for one in owned if one.running and one.machine_id in known}, epoch)
        return orphans

    async def _unrest(self, running: set[str], epoch: int | None) -> None:
        """Have a lane look at machines that run while nothing is left to do, as after a late effect of a frozen owner."""
        at_work = {due.instance_id for due in await self._tools.store.pending()}
        found = running - at_work
        for instance_id in sorted(found & self._restless):
            self._tools.log.warning("provisioner.machine.runs_at_rest", instance_id=instance_id)
            async with self._tools.store.transaction(epoch=epoch) as work:
                held = await work.lock(instance_id)
                if held is not None and held.next_at_ms is None:
                    now_ms = to_ms(self._tools.clock.now())
                    limits = self._tools.limits
                    await record(work, held, held.evolve(next_at_ms=now_ms), limits=limits, now_ms=now_ms)
        self._restless = found

    async def _left_storage(self, owned: Sequence[Owned]) -> list[Owned]:
        """Data of instances that were deleted for good; data without any row is somebody's, and stays."""
        alone = [one for one in owned if one.machine_id is None]
        gone = await self._tools.store.tombstones([one.instance_id for one in alone])
        return [one for one in alone if one.instance_id in gone]

    async def _repair(self, one: Owned) -> None:
        driver, about = self._tools.driver, {"instance_id": one.instance_id, "machine_id": one.machine_id}
        try:
            if one.machine_id is None:
                await driver.delete_storage(one.instance_id)
            else:
                await driver.delete(MachineRef(one.instance_id, one.machine_id))
        except DriverError as error:  # the others need not wait for it
            self._tools.log.warning("provisioner.orphan.stays", reason=str(error), **about)
        else:
            self._tools.log.warning("provisioner.orphan.removed", **about)
