"""Looks at machines: folds what the driver saw into the row, and counts running seconds from the same look."""

from __future__ import annotations

from dataclasses import replace

from hatchery_common.contracts.instances import InstanceMetered, InstanceStatus
from hatchery_common.contracts.routes import RouteState

from hatchery_provisioner.domain.errors import DriverError
from hatchery_provisioner.domain.instance import Instance, Machine, Operation, Power
from hatchery_provisioner.domain.metering import Boot, ended, is_due, observed
from hatchery_provisioner.domain.observations import Observation, Phase, fold, may_exist
from hatchery_provisioner.domain.status import derive
from hatchery_provisioner.ports import Transaction
from hatchery_provisioner.reconciler.workbench import Change, Workbench

_OPEN = (RouteState.RUNNING, RouteState.STARTING)


async def look_at(bench: Workbench, machine: Machine) -> Observation:
    """What the driver sees; a driver that fails to answer is an unknown state, never a known one."""
    try:
        return await bench.call(bench.tools.driver.observe(bench.ref(machine)), bench.limits.observe_s)
    except DriverError as error:
        return Observation(Phase.UNKNOWN, bench.now_ms(), detail=error.message)


class Looker:
    """The looks of one lane; it remembers which readings were written, so that most looks cost no transaction."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._metered: dict[str, Boot] = {}

    async def look(self, instance: Instance, *, reading: bool = False) -> Instance:
        """Observe the current machine and store what changed; `reading` writes the meter's reading in any case."""
        machine = instance.machine
        if machine is None or not may_exist(instance):
            return instance
        seen = await look_at(self._bench, machine)
        return await self.store(instance, machine, seen, reading=reading)

    async def store(
        self, instance: Instance, machine: Machine, seen: Observation, *, reading: bool = False, by_us: bool = False
    ) -> Instance:
        """Store one observation of a machine, current or being removed; `by_us` of one that we have just stopped."""
        bench = self._bench
        due = self._is_due(machine, seen) or (reading and seen.phase is Phase.RUNNING)

        def decide(held: Instance) -> Change | None:
            if held.machine is None or held.machine.machine_id != machine.machine_id:
                return None
            after = fold(held, seen, bench.limits, bench.now_ms(), by_us=by_us)
            off = after.machine is not None and (after.machine.power is Power.OFF or after.machine.is_headless)
            # nobody is led to an endpoint where nothing, or by now something else, listens
            closed = RouteState.STOPPED if off and held.route_state in _OPEN else None
            if derive(after) is not InstanceStatus.STOPPED:
                return Change(after, route=closed)
            return Change(after, route=RouteState.STOPPED if held.route_version else None, observed=True)

        async def meter(work: Transaction) -> None:
            await self._meter(work, instance, machine, seen)

        current = instance.machine is not None and instance.machine.machine_id == machine.machine_id
        unchanged = not current or fold(instance, seen, bench.limits, bench.now_ms(), by_us=by_us) == instance
        if unchanged and not due:
            return instance
        return await bench.apply(decide, extra=meter if due else None)

    def _is_due(self, machine: Machine, seen: Observation) -> bool:
        if seen.phase is Phase.UNKNOWN:
            return False
        if seen.phase is not Phase.RUNNING:
            done = self._metered.get(machine.machine_id)
            return done is None or not done.final
        boot = self._metered.get(machine.machine_id)
        every_ms = int(self._bench.limits.meter_s * 1000)
        return boot is None or boot.final or boot.boot_id != seen.boot_id or is_due(boot, seen.observed_at_ms, every_ms)

    async def _meter(self, work: Transaction, instance: Instance, machine: Machine, seen: Observation) -> None:
        """Write the reading of the running boot; every other boot of this machine has ended."""
        running = seen.phase is Phase.RUNNING and seen.boot_id is not None
        found: Boot | None = None
        for boot in await work.boots(instance.instance_id, seen=seen.boot_id if running else None):
            if boot.machine_id != machine.machine_id:
                continue
            if running and boot.boot_id == seen.boot_id:
                found = boot
            else:
                await self._write(work, ended(boot), seen, instance.operation)
        if running:
            boot = observed(found or self._first(instance, machine, seen), seen.observed_at_ms)
            await self._write(work, boot, seen, instance.operation)
        elif machine.machine_id not in self._metered or not self._metered[machine.machine_id].final:
            self._metered[machine.machine_id] = ended(self._first(instance, machine, seen))

    def _first(self, instance: Instance, machine: Machine, seen: Observation) -> Boot:
        began = min(seen.started_at_ms or seen.observed_at_ms, seen.observed_at_ms)
        return Boot(
            boot_id=seen.boot_id or "",
            instance_id=instance.instance_id,
            machine_id=machine.machine_id,
            tenant=instance.tenant,
            size=instance.size,
            last_observed_ms=began,
        )

    async def _write(self, work: Transaction, boot: Boot, seen: Observation, under_way: Operation | None) -> None:
        """Store and publish one reading; the first of a boot tells its beginning with next to nothing on it."""
        told = replace(boot, published_ms=seen.observed_at_ms)
        await work.save_boot(told)
        self._metered[boot.machine_id] = told
        reading = InstanceMetered(
            tenant=boot.tenant,
            instance_id=boot.instance_id,
            boot_id=boot.boot_id,
            seconds_total=boot.seconds_total,
            gap_seconds=boot.gap_seconds,
            observed_at_ms=boot.last_observed_ms,
            final=boot.final,
            size=boot.size,
        )
        await work.emit(reading, operation_id=under_way.id if under_way else None)
