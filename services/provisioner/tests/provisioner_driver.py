"""A driver in memory that obeys the port until a test makes it misbehave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hatchery_common.clock import SystemClock, to_ms
from hatchery_provisioner.domain.errors import DriverPermanent, DriverTransient
from hatchery_provisioner.domain.observations import Observation, Phase
from hatchery_provisioner.ports import BootSecrets, ExecResult, MachineRef, MachineSpec, Owned, Placement


@dataclass
class FakeMachine:
    """One machine of the fake driver."""

    spec: MachineSpec
    boots: int = 0
    running: bool = False
    headless: bool = False
    started_at_ms: int = 0


class FakeDriver:
    """A driver in memory that obeys the port; `before` and `after` hooks of an operation make it misbehave."""

    name = "fake"

    def __init__(self) -> None:
        self.machines: dict[str, FakeMachine] = {}
        self.storage: set[str] = set()
        self.calls: list[str] = []
        self.graces: list[float] = []
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.most_running = 0

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncGenerator[None]:
        self.calls.append(name)
        if name in self.before:
            await self.before[name]()
        yield
        if name in self.after:
            await self.after[name]()

    async def prepare_image(self) -> str:
        async with self._call("prepare_image"):
            return "1"

    async def ensure(self, spec: MachineSpec) -> Placement:
        async with self._call("ensure"):
            if spec.expects_storage and spec.instance_id not in self.storage:
                raise DriverPermanent("storage_missing", "its storage is gone")
            others = [one for one in self.machines.values() if one.spec.instance_id == spec.instance_id]
            newer = [one for one in others if one.spec.generation > spec.generation]
            if newer:
                raise DriverPermanent("stale_generation", "a newer machine exists")
            if any(one.running for one in others if one.spec.machine_id != spec.machine_id):
                raise DriverTransient("former_machine_running", "still there")
            self.storage.add(spec.instance_id)
            self.machines.setdefault(spec.machine_id, FakeMachine(spec))
            return Placement({"n": len(self.machines)}, "http://h:1", "http://h:2", 71, 72)

    async def start(self, machine: MachineRef, secrets: BootSecrets) -> Placement:
        async with self._call("start"):
            found = self.machines.get(machine.machine_id)
            if found is None:
                raise DriverTransient("machine_absent", "create it first")
            if not found.running:
                found.running, found.boots = True, found.boots + 1
                found.started_at_ms = to_ms(SystemClock().now())
            running = sum(one.running for one in self.machines.values())
            self.most_running = max(self.most_running, running)
        return Placement({"started": True}, "http://h:1", "http://h:2", 71, 72)

    async def stop(self, machine: MachineRef, *, grace_s: float) -> None:
        self.graces.append(grace_s)
        async with self._call("stop"):
            if machine.machine_id in self.machines:
                self.machines[machine.machine_id].running = self.machines[machine.machine_id].headless = False

    async def observe(self, machine: MachineRef) -> Observation:
        async with self._call("observe"):
            now_ms = to_ms(SystemClock().now())
            found = self.machines.get(machine.machine_id)
            if found is None:
                return Observation(Phase.ABSENT, now_ms)
            if not found.running:
                return Observation(Phase.HEADLESS if found.headless else Phase.STOPPED, now_ms)
            boot = f"boot_{machine.machine_id}_{found.boots}"
            place = {"endpoint": "http://h:1", "controller": "http://h:2", "endpoint_uid": 71, "controller_uid": 72}
            return Observation(Phase.RUNNING, now_ms, boot, found.started_at_ms, **place)

    async def delete(self, machine: MachineRef) -> None:
        async with self._call("delete"):
            self.machines.pop(machine.machine_id, None)

    async def exec(self, machine: MachineRef, command: Sequence[str], *, timeout_s: float) -> ExecResult:
        return ExecResult(0, "")

    async def logs(self, machine: MachineRef, *, lines: int) -> tuple[str, ...]:
        return ("the last line",)

    async def list_owned(self) -> Sequence[Owned]:
        found = [
            Owned(one.spec.instance_id, key, one.spec.generation, one.running or one.headless)
            for key, one in self.machines.items()
        ]
        labelled = {one.instance_id for one in found}
        return [*found, *(Owned(name, None) for name in self.storage - labelled)]

    async def delete_storage(self, instance_id: str) -> None:
        async with self._call("delete_storage"):
            self.storage.discard(instance_id)
