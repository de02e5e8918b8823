"""Drives machines that are processes of this host. Without root they share our user: then nothing isolates them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

from hatchery_common.clock import Clock, to_ms
from hatchery_common.log import redact_text
from hatchery_common.peers import own_uid

from hatchery_provisioner.adapters.process import identity, spawning
from hatchery_provisioner.adapters.process.commands import run_as
from hatchery_provisioner.adapters.process.directory import InstanceDirectory, Labels, LabelsBroken
from hatchery_provisioner.adapters.process.ending import ControllerCalls, Ending
from hatchery_provisioner.adapters.process.leases import Lease, Leases
from hatchery_provisioner.adapters.process.sight import Sight, gateway
from hatchery_provisioner.domain.errors import DriverCapacity, DriverError, DriverPermanent, DriverTransient
from hatchery_provisioner.domain.observations import Observation, Phase
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.ports import BootSecrets, ExecResult, MachineRef, MachineSpec, Owned, Placement

_PORT_TRIES = 20


@dataclass(frozen=True)
class ProcessPlaces:
    """Where things are on this host; `environment` goes to every gateway."""

    machines: Path
    node: Path
    openclaw: Path
    min_free_bytes: int = 64 * 1024 * 1024
    environment: dict[str, str] = field(default_factory=dict[str, str])


class ProcessDriver:
    """The MachineDriver port. A machine's identity is its directory's labels plus pid, start time and token answer."""

    name = "process"

    def __init__(
        self,
        places: ProcessPlaces,
        leases: Leases,
        controllers: ControllerCalls,
        clock: Clock,
        *,
        is_free: Callable[[int], bool] = spawning.is_free,
    ) -> None:
        self._places = replace(places, machines=places.machines.absolute())
        self._leases = leases
        self._sight = Sight(self._places.machines)
        self._ending = Ending(self._places.machines, controllers)
        self._clock = clock
        self._is_free = is_free
        self._starts: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare_image(self) -> str:
        """Check that Node and OpenClaw are installed; returns OpenClaw's version."""
        for path in (self._places.node, self._places.openclaw):
            if not path.is_file():
                raise DriverPermanent(Reason.NOT_INSTALLED, f"{path.name} is not installed at its place")
        try:
            package = json.loads((self._places.openclaw.parent / "package.json").read_bytes())
            return str(package["version"])
        except (OSError, ValueError, KeyError):
            return "unknown"

    async def ensure(self, spec: MachineSpec) -> Placement:
        """Reserve port and user, then make the directory with its labels."""
        directory = self._directory(spec.instance_id)
        if spec.expects_storage and not directory.root.is_dir():
            raise DriverPermanent(
                Reason.STORAGE_MISSING, "the instance's directory is gone although it was used before"
            )
        found = directory.labels()
        if found is not None and found.machine_id != spec.machine_id:
            await self._refuse_other(directory, found, spec)
        lease = await self._leases.reserve(spec.instance_id)
        try:
            directory.create()
            self._require_space()
            if found is None or found.machine_id != spec.machine_id:
                directory.write_labels(
                    Labels(spec.instance_id, spec.machine_id, spec.generation, spec.epoch, spec.operation_id)
                )
        except OSError as error:
            raise spawning.refused(error, "making the instance's directory") from error
        return self._placement(lease)

    async def _refuse_other(self, directory: InstanceDirectory, found: Labels, spec: MachineSpec) -> None:
        if found.generation > spec.generation:
            raise DriverPermanent("stale_generation", "a newer machine of this instance exists")
        if await self._sight.anything(directory, found):
            raise DriverTransient("former_machine_running", "the former machine of this instance still runs")

    def _require_space(self) -> None:
        if spawning.free_bytes(self._places.machines) < self._places.min_free_bytes:
            needed = self._places.min_free_bytes // 1024**2
            raise DriverPermanent(Reason.DISK_FULL, f"less than {needed} MiB are free for machines")

    async def start(self, machine: MachineRef, secrets: BootSecrets) -> Placement:
        """Spawn the controller unless it lives; labels learn its pid at once. Of starts at the same time the first one counts."""
        async with self._starts.setdefault(machine.instance_id, asyncio.Lock()):
            return await self._start(machine, secrets)

    async def _start(self, machine: MachineRef, secrets: BootSecrets) -> Placement:
        spawning.reap()
        directory = self._directory(machine.instance_id)
        labels = directory.labels()
        if labels is None or labels.machine_id != machine.machine_id:
            raise DriverTransient("machine_absent", "the machine's labels are gone: it must be created again")
        lease = await self._leases.reserve(machine.instance_id)
        running = await self._sight.controller(directory, labels)
        if running is not None:
            self._adopt(directory, labels, running)
            return self._placement(lease)
        await self._ending.stragglers(directory, lease)
        self._require_space()
        lease = await self._with_free_ports(machine.instance_id, lease)
        boot = spawning.bundle(
            machine.machine_id,
            lease,
            secrets,
            node=str(self._places.node),
            openclaw=str(self._places.openclaw),
            environment=self._places.environment,
        )
        await self._spawn(directory, labels, lease, boot)
        return self._placement(lease)

    async def _spawn(self, directory: InstanceDirectory, labels: Labels, lease: Lease, boot: bytes) -> None:
        """Spawn and label as one, even when we are cancelled meanwhile: whoever undoes this start must find it."""
        spawned = asyncio.ensure_future(asyncio.to_thread(spawning.spawn, directory, lease, boot))
        try:
            pid = await asyncio.shield(spawned)
        except asyncio.CancelledError:
            with contextlib.suppress(DriverError):
                self._adopt(directory, labels, await spawned)
            raise
        self._adopt(directory, labels, pid)

    def _adopt(self, directory: InstanceDirectory, labels: Labels, pid: int) -> None:
        ticks = identity.started_ticks(pid)
        try:
            directory.write_labels(replace(labels, pid=pid, started_ticks=ticks))
        except OSError as error:
            raise spawning.refused(error, "writing the machine's labels") from error

    async def _with_free_ports(self, instance_id: str, lease: Lease) -> Lease:
        """A lease whose ports nobody listens on; a taken one is put aside for a while."""
        for _ in range(_PORT_TRIES):
            if self._is_free(lease.port) and self._is_free(lease.controller_port):
                return lease
            try:
                lease = await self._leases.move(instance_id, lease.port)
            except DriverCapacity as error:
                held = f"another program holds port {lease.port} or {lease.controller_port}, and no other is free"
                raise DriverCapacity(Reason.PORT_TAKEN, held) from error
        raise DriverCapacity(Reason.PORT_TAKEN, f"{_PORT_TRIES} ports in a row are held by other programs")

    async def stop(self, machine: MachineRef, *, grace_s: float) -> None:
        """Ask the controller to end its gateway and itself; kill both when it does not within the grace."""
        directory = self._directory(machine.instance_id)
        lease = await self._leases.find(machine.instance_id)
        try:
            labels = directory.labels()
        except LabelsBroken:  # whichever machine of the instance runs here: it was to be ended
            await self._ending.unlabelled(directory)
        else:
            if labels is None or labels.machine_id != machine.machine_id:
                return
            pid = await self._sight.controller(directory, labels)
            if pid is not None:
                await self._ending.controller(machine.machine_id, pid, lease, grace_s)
        await self._ending.stragglers(directory, lease)
        spawning.reap()

    async def observe(self, machine: MachineRef) -> Observation:
        """Look at labels and processes."""
        spawning.reap()
        directory = self._directory(machine.instance_id)
        now_ms = to_ms(self._clock.now())
        try:
            labels = directory.labels()
        except LabelsBroken as broken:
            if await self._sight.anything(directory, None):
                raise
            return Observation(Phase.STOPPED, now_ms, detail=broken.message)
        if labels is None or labels.machine_id != machine.machine_id:
            return Observation(Phase.ABSENT, now_ms)
        pid = await self._sight.controller(directory, labels)
        ticks = identity.started_ticks(pid) if pid is not None else None
        if pid is None or ticks is None:
            phase = Phase.STOPPED if gateway(directory) is None else Phase.HEADLESS
            return Observation(phase, now_ms, detail=directory.last_words())
        if not await self._answers_as(machine, labels, pid):
            return Observation(Phase.UNKNOWN, now_ms, detail="another machine answers in its place")
        lease = await self._leases.find(machine.instance_id)
        place = self._placement(lease) if lease else Placement()
        return Observation(
            Phase.RUNNING,
            now_ms,
            boot_id=identity.boot_id(machine.machine_id, pid, ticks),
            started_at_ms=identity.started_at_ms(pid),
            endpoint=place.endpoint,
            controller=place.controller,
            endpoint_uid=place.endpoint_uid,
            controller_uid=place.controller_uid,
        )

    async def _answers_as(self, machine: MachineRef, labels: Labels, pid: int) -> bool:
        """Adopt a process that our labels do not know only if it does not answer as another machine."""
        if labels.pid == pid:
            return True
        record = self._directory(machine.instance_id).controller_record()
        if record.get("pid") == pid and record.get("machine_id") not in (None, machine.machine_id):
            return False
        self._adopt(self._directory(machine.instance_id), labels, pid)
        return True

    async def delete(self, machine: MachineRef) -> None:
        """End the machine and remove what is not data."""
        directory = self._directory(machine.instance_id)
        labels: Labels | None = None
        with contextlib.suppress(LabelsBroken):
            labels = directory.labels()
            if labels is None or labels.machine_id != machine.machine_id:
                return
        await self.stop(machine, grace_s=0.0)
        if await self._sight.anything(directory, labels):
            raise DriverTransient("still_running", "the machine's processes did not end")
        directory.forget_machine()

    async def delete_storage(self, instance_id: str) -> None:
        """Remove the directory, the lock files elsewhere, and the lease."""
        directory = self._directory(instance_id)
        lease = await self._leases.find(instance_id)
        await self._ending.whatever_runs(directory, lease)  # even where somebody has removed the directory by hand
        try:
            await asyncio.to_thread(directory.remove, lease.uid if lease else None)
        except OSError as error:
            raise spawning.refused(error, "removing the instance's directory") from error
        await self._leases.release(instance_id)

    async def exec(self, machine: MachineRef, command: Sequence[str], *, timeout_s: float) -> ExecResult:
        """Run a command as the gateway's user in its home."""
        directory = self._directory(machine.instance_id)
        lease = await self._leases.find(machine.instance_id)
        path = f"{self._places.node.parent}:/usr/bin:/bin"
        uid = lease.uid if lease else None
        return await run_as(uid, command, home=directory.root / "home", path=path, timeout_s=timeout_s)

    async def logs(self, machine: MachineRef, *, lines: int) -> tuple[str, ...]:
        """The tail of its log, redacted."""
        return tuple(redact_text(line) for line in self._directory(machine.instance_id).log_tail(lines))

    async def list_owned(self) -> Sequence[Owned]:
        """Every directory below ours, with the machine that its labels name, if any can be read."""
        try:
            return await self._sight.owned()
        except OSError as error:
            raise spawning.refused(error, "listing the machines' directory") from error

    async def stop_all(self, *, grace_s: float) -> None:
        """Stop every machine at once, as when the whole stack goes down; desired state is not ours to touch.

        One that cannot be stopped hinders none of the others; its error comes at the end.
        """
        running = [one for one in await self.list_owned() if one.running]
        ends = await asyncio.gather(*(self._stop_owned(one, grace_s) for one in running), return_exceptions=True)
        for error in ends:
            if error is not None:
                raise error

    async def _stop_owned(self, one: Owned, grace_s: float) -> None:
        if one.machine_id is not None:
            await self.stop(MachineRef(one.instance_id, one.machine_id), grace_s=grace_s)
            return
        lease = await self._leases.find(one.instance_id)
        await self._ending.whatever_runs(self._directory(one.instance_id), lease)  # nobody can read which machine it is

    def _directory(self, instance_id: str) -> InstanceDirectory:
        if "/" in instance_id or instance_id.startswith("."):
            raise DriverPermanent("bad_id", "an instance id that is no plain name")
        return InstanceDirectory(self._places.machines / instance_id)

    def _placement(self, lease: Lease) -> Placement:
        """Controllers keep our user, gateways have theirs; without users of their own they have ours, too."""
        ours = own_uid()
        gateway = lease.uid if lease.uid is not None and ours is not None else ours
        state = {"port": lease.port, "uid": lease.uid}
        return Placement(state, lease.endpoint, lease.controller, gateway, ours)
