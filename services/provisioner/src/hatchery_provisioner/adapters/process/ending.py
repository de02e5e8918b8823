"""Ends what runs for an instance: in order if its controller answers, by force if not, and seen gone either way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hatchery_provisioner.adapters.process import identity, scanning, spawning
from hatchery_provisioner.adapters.process.directory import InstanceDirectory
from hatchery_provisioner.adapters.process.leases import Lease
from hatchery_provisioner.adapters.process.sight import gateway
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.ports import ControllerState

_KILL_S = 5.0
_MARGIN_S = 2.0


class ControllerCalls(Protocol):
    """What the driver asks of a controller; None and False when nobody answers with the machine's token."""

    async def state(
        self, address: str, machine_id: str, *, since: int | None, wait_s: float
    ) -> ControllerState | None: ...

    async def stop(self, address: str, machine_id: str, *, deadline_s: float) -> bool: ...


@dataclass(frozen=True)
class Ending:
    """The ends of machines below one directory."""

    machines: Path
    controllers: ControllerCalls

    async def controller(self, machine_id: str, pid: int, lease: Lease | None, grace_s: float) -> None:
        """Ask this controller to end its gateway and itself; kill it when it does not within the grace."""
        ticks = identity.started_ticks(pid)
        if ticks is None:
            return
        asked = False
        if lease is not None and grace_s > 0:
            asked = await self.controllers.stop(lease.controller, machine_id, deadline_s=grace_s)
        if not asked and grace_s > 0 and identity.is_same(pid, ticks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)  # a controller that cannot be reached still stops in order on SIGTERM
        if grace_s > 0 and await identity.wait_gone(pid, ticks, grace_s + _MARGIN_S):
            return
        if identity.is_same(pid, ticks):
            identity.kill_group(pid)
        await identity.wait_gone(pid, ticks, _KILL_S)

    async def whatever_runs(self, directory: InstanceDirectory, lease: Lease | None) -> None:
        """Kill all that runs here, whatever the labels say."""
        await self.unlabelled(directory)
        await self.stragglers(directory, lease)

    async def unlabelled(self, directory: InstanceDirectory) -> None:
        """Kill controllers that no labels name any more: one would start its gateway again in a directory that is going."""
        pid = (await scanning.controllers(self.machines)).get(directory.root)
        ticks = identity.started_ticks(pid) if pid is not None else None
        if pid is not None and ticks is not None:
            identity.kill_group(pid)
            if not await identity.wait_gone(pid, ticks, _KILL_S):
                raise DriverTransient("still_running", "a controller of the instance does not end")
        spawning.reap()

    async def stragglers(self, directory: InstanceDirectory, lease: Lease | None) -> None:
        """Kill what a controller that died hard left running under this root or its user, and see it gone."""
        found = await scanning.leftovers(directory.root, lease.uid if lease else None)
        _kill(found)
        written = gateway(directory)  # after the others: where this cannot be read, they are killed all the same
        if written is not None and written not in found:
            _kill([written])
            found.append(written)
        for pid, ticks in found:
            if ticks is not None and not await identity.wait_gone(pid, ticks, _KILL_S):
                raise DriverTransient("still_running", "a process of the machine does not end")


def _kill(found: Sequence[tuple[int, int | None]]) -> None:
    for pid, ticks in found:
        if identity.is_same(pid, ticks):
            identity.kill_group(pid)
