"""Another program takes a gateway's port between the look at it and the gateway's start: the machine moves."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from hatchery_common.clock import SystemClock
from hatchery_common.contracts.instances import InstanceStatus, ProvisionInstance, StartInstance
from hatchery_provisioner.adapters.process import ProcessDriver, spawning
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.reconciler import Tools
from process_rig import MemoryLeases, ProcessRig, TestSecrets
from provisioner_fakes import INSTANCE, World

READY, ERROR = InstanceStatus.READY, InstanceStatus.ERROR


def squatted(world: World) -> None:
    """The gateway finds its port taken until its machine is removed."""

    async def elsewhere() -> None:
        world.controllers.set("ready")

    world.driver.after["delete"] = elsewhere
    world.controllers.set("failed", "gateway_port_taken", "another process listens on port 9")


def assert_moved(world: World) -> None:
    assert len(world.store.machines_seen) == 2
    assert world.store.machines_seen > set(world.driver.machines)
    assert world.driver.most_running == 1
    assert world.store.ended() == [("op_1", "finished", None)]
    assert "error" not in world.store.statuses()
    assert world.row.reason is None


async def test_at_the_first_start() -> None:
    async with World() as world:
        squatted(world)
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        assert_moved(world)
        assert ("wait_ready", "port_taken") in world.store.failed_steps()


async def test_while_a_ready_gateway_starts_again() -> None:
    async with World() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY)
        squatted(world)
        await world.until(lambda: len(world.store.machines_seen) == 2 and world.row.status is READY)
        assert_moved(world)


async def test_the_owner_dies_in_the_midst_of_the_move() -> None:
    async with World() as world:
        reached = asyncio.Event()

        async def die() -> None:
            reached.set()
            await asyncio.sleep(60)

        squatted(world)
        world.driver.before["delete"] = die
        await world.wish(ProvisionInstance)
        await asyncio.wait_for(reached.wait(), 5)
        await world.die()
        del world.driver.before["delete"]
        await world.revive()
        await world.until_settled(READY)
        assert_moved(world)


async def test_a_squatter_at_every_port_ends_in_an_error_with_a_remedy() -> None:
    async with World() as world:
        world.controllers.set("failed", "gateway_port_taken", "another process listens on port 9")
        await world.wish(ProvisionInstance)
        await world.until_settled(ERROR)
        assert world.row.reason == "port_taken"
        assert "port 9; remedy: end the program that holds the port" in (world.row.message or "")
        assert world.driver.calls.count("start") == world.limits.max_attempts + 1
        assert world.store.ended() == [("op_1", "failed", "port_taken")]
        world.controllers.set("ready")
        await world.wish(StartInstance)
        await world.until_settled(READY)


class RealWorld(World):
    """A reconciler over real processes; the first port that is found free is taken right after that."""

    def __post_init__(self) -> None:
        self.leases = MemoryLeases()
        self.rig = ProcessRig(leases=self.leases)
        self.squatters: list[socket.socket] = []
        super().__post_init__()

    def is_free(self, port: int) -> bool:
        free = spawning.is_free(port)
        if free and not self.squatters:
            self.squatters.append(socket.create_server(("127.0.0.1", port)))
        return free

    def tools(self) -> Tools:
        rig = self.rig
        driver = ProcessDriver(rig.places, rig.leases, rig.controllers, SystemClock(), is_free=self.is_free)
        limits = Limits(drain_s=0.01, stop_grace_s=5, backoff_first_s=0.1)
        return replace(
            super().tools(), driver=driver, controllers=rig.controllers, secrets=TestSecrets(), limits=limits
        )

    async def die(self) -> None:
        await super().die()
        for squatter in self.squatters:
            squatter.close()
        await self.rig.close()


async def test_with_real_processes() -> None:
    async with RealWorld() as world:
        await world.wish(ProvisionInstance)
        await world.until_settled(READY, 60)
        (squatter,) = world.squatters
        taken = squatter.getsockname()[1]
        assert world.leases.moved == [taken]
        assert world.row.machine is not None
        lease = world.leases.held[INSTANCE]
        assert (world.row.machine.endpoint, lease.port == taken) == (lease.endpoint, False)
        assert world.store.ended() == [("op_1", "finished", None)]
        assert ("wait_ready", "port_taken") in world.store.failed_steps()
