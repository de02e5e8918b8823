"""Looks for what runs for an instance: by its labels, by its controller's command line, by what its controller wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hatchery_provisioner.adapters.process import identity, scanning
from hatchery_provisioner.adapters.process.directory import InstanceDirectory, Labels
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.ports import Owned


@dataclass(frozen=True)
class Sight:
    """The looks below one directory."""

    machines: Path

    async def controller(self, directory: InstanceDirectory, labels: Labels | None) -> int | None:
        """The pid of the living controller: from the labels, else by looking for its command line."""
        if labels is not None and identity.is_same(labels.pid, labels.started_ticks):
            return labels.pid
        return (await scanning.controllers(self.machines)).get(directory.root)

    async def anything(self, directory: InstanceDirectory, labels: Labels | None) -> bool:
        """Whether a controller lives, or a gateway that outlived its own."""
        return await self.controller(directory, labels) is not None or gateway(directory) is not None

    async def owned(self) -> Sequence[Owned]:
        """Every directory with the machine that its labels name; one that cannot be read hides none of the others.

        It counts as data alone, and as running when a controller runs in it.
        """
        if not self.machines.is_dir():
            return []
        living = await scanning.controllers(self.machines)
        found: list[Owned] = []
        for root in sorted(self.machines.iterdir()):
            if root.name.startswith(".") or not _may_be_directory(root):
                continue
            directory, labels = InstanceDirectory(root), None
            with contextlib.suppress(DriverTransient):
                labels = directory.labels()
            machine_id, generation = (labels.machine_id, labels.generation) if labels else (None, 0)
            found.append(Owned(root.name, machine_id, generation, root in living or _has_gateway(directory)))
        return found


def _may_be_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return True


def _has_gateway(directory: InstanceDirectory) -> bool:
    """Whether a gateway is known to live here."""
    try:
        return gateway(directory) is not None
    except (DriverTransient, OSError):
        return False


def gateway(directory: InstanceDirectory) -> tuple[int, int] | None:
    """Pid and start of the living gateway that its controller wrote down, whether or not the controller lives."""
    record = directory.controller_record()
    pid, ticks = record.get("gateway_pid"), record.get("gateway_started_ticks")
    if not isinstance(pid, int) or not isinstance(ticks, int) or not identity.is_same(pid, ticks):
        return None
    return pid, ticks
