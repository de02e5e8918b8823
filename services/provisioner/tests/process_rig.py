"""A process driver in a directory of its own, with the stand-in gateway as its machines' gateway."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hatchery_common.clock import SystemClock
from hatchery_common.peers import own_uid
from hatchery_common.secrets import (
    controller_token,
    machine_header_name,
    mint_model_token,
    owner_identity,
    service_identity,
)
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.ports import free_port, give_back
from hatchery_provisioner.adapters.controllers import HttpControllers
from hatchery_provisioner.adapters.process import Lease, Leases, ProcessDriver, ProcessPlaces
from hatchery_provisioner.adapters.process.leases import CONTROLLER_OFFSET, Range
from hatchery_provisioner.ports import BootSecrets

KEY = bytes(range(32))
UIDS = iter(range(63000 + os.getpid() % 500, 64500))


def machine_port() -> int:
    """A port for a gateway, with its controller's."""
    return free_port(also=[CONTROLLER_OFFSET])


@contextmanager
def machine_ports(count: int) -> Generator[Range]:
    """Ports for so many gateways, with their controllers'; given back at the end."""
    controllers = range(CONTROLLER_OFFSET, CONTROLLER_OFFSET + count)
    first = free_port(count, controllers)
    yield Range(first, count)
    give_back(first, count, controllers)


class MemoryLeases:
    """Leases that last as long as a test; by default gateways share our user, whose Python others may not reach."""

    def __init__(self, *, separate: bool = False) -> None:
        self.separate = separate and os.getuid() == 0
        self.held: dict[str, Lease] = {}
        self.moved: list[int] = []

    async def reserve(self, instance_id: str) -> Lease:
        if instance_id not in self.held:
            self.held[instance_id] = Lease(machine_port(), next(UIDS) if self.separate else None)
        return self.held[instance_id]

    async def find(self, instance_id: str) -> Lease | None:
        return self.held.get(instance_id)

    async def move(self, instance_id: str, from_port: int) -> Lease:
        self.moved.append(from_port)
        self.held[instance_id] = Lease(machine_port(), self.held[instance_id].uid)
        return self.held[instance_id]

    async def release(self, instance_id: str) -> None:
        self.held.pop(instance_id, None)


class TestSecrets:
    """The Secrets port over one key for everything."""

    __test__ = False

    def of(self, machine_id: str) -> BootSecrets:
        model = {
            "base_url": "http://127.0.0.1:9/llm/v1",
            "token": mint_model_token(KEY, machine_id, issued_at=0),
            "id": "demo",
        }
        return BootSecrets(
            controller_token(KEY, machine_id),
            machine_header_name(KEY, machine_id),
            owner_identity(machine_id),
            service_identity(machine_id),
            model,
        )


class ProcessRig:
    """The rig; machines lie where other users can pass through."""

    def __init__(self, *, leases: Leases | None = None, root: Path | None = None, **environment: str) -> None:
        self.root = root or Path(tempfile.mkdtemp(prefix="hatchery-machines-"))
        self.root.chmod(0o755)
        self.leases = leases or MemoryLeases()
        self.controllers = HttpControllers(partial(controller_token, KEY), uid=own_uid())
        self.places = ProcessPlaces(
            self.root / "machines", Path(sys.executable), Path(ENTRY), min_free_bytes=1024, environment=environment
        )
        self.driver = self.reborn()

    def reborn(self) -> ProcessDriver:
        return ProcessDriver(self.places, self.leases, self.controllers, SystemClock())

    def secrets(self, machine_id: str) -> BootSecrets:
        return TestSecrets().of(machine_id)

    async def close(self) -> None:
        """End and remove everything of this rig."""
        await self.driver.stop_all(grace_s=0.0)
        for one in await self.driver.list_owned():
            await self.driver.delete_storage(one.instance_id)
        await self.controllers.close()
        for path in (self.root / "machines", self.root):
            if path.exists():
                path.rmdir()
