"""From running to stopped or gone, in closing order: the route first, then the machine, then its data."""

from __future__ import annotations

from dataclasses import replace

from hatchery_common.contracts.instances import DesiredState
from hatchery_common.contracts.routes import RouteState
from hatchery_common.failpoints import reach

from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.instance import Instance, Machine, MachineStage, Power, StorageStage
from hatchery_provisioner.domain.observations import Phase
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.reconciler.looking import Looker, look_at
from hatchery_provisioner.reconciler.workbench import Change, Workbench

_MARGIN_S = 15.0
_DELETE_GRACE_S = 5.0
_OPEN = (RouteState.RUNNING, RouteState.STARTING)


class Stopping:
    """The steps towards stopped and gone."""

    def __init__(self, bench: Workbench, looker: Looker) -> None:
        self._bench = bench
        self._looker = looker

    async def stop(self, instance: Instance, machine: Machine) -> None:
        """Close the route, let the proxies drop their tunnels, stop the machine, and look."""
        bench = self._bench

        def close(held: Instance) -> Change | None:
            if next_step(held, bench.now_ms()) is not Step.STOP:
                return None
            return Change(held.evolve(ready=False, degraded=False), route=_closing(held))

        await self._drain(instance, await bench.apply(close))
        instance = await bench.read()
        if next_step(instance, bench.now_ms()) is not Step.STOP:
            return
        overdue = instance.reason == Reason.STOP_OVERDUE
        async with bench.step("stop_machine", instance):
            await self._off(instance, machine, 0.0 if overdue else bench.limits.stop_grace_s)

    async def _drain(self, before: Instance, after: Instance) -> None:
        if before.route_state is RouteState.RUNNING and after.route_state is RouteState.STOPPING:
            await self._bench.pause(self._bench.limits.drain_s)

    async def _off(self, instance: Instance, machine: Machine, grace_s: float) -> None:
        """Stop one machine and see it stopped; raises DriverTransient when it still runs."""
        bench = self._bench
        await self._looker.store(await bench.read(), machine, await look_at(bench, machine), reading=True)
        await bench.call(bench.tools.driver.stop(bench.ref(machine), grace_s=grace_s), grace_s + _MARGIN_S)
        reach("provisioner.after_stop_effect")
        seen = await look_at(bench, machine)
        await self._looker.store(await bench.read(), machine, seen, by_us=True)
        if seen.phase not in (Phase.STOPPED, Phase.ABSENT):
            raise DriverTransient("still_running", f"the machine is still {seen.phase.value} after it was stopped")

    async def retire(self, instance: Instance) -> None:
        """Put the machine aside for removal; its id is kept until it is seen gone."""
        bench = self._bench

        def decide(held: Instance) -> Change | None:
            machine = held.machine
            if machine is None or next_step(held, bench.now_ms()) is not Step.RETIRE:
                return None
            return Change(held.evolve(ready=False, degraded=False), route=_closing(held))

        await self._drain(instance, await bench.apply(decide))

        def put_aside(held: Instance) -> Change | None:
            machine = held.machine
            if machine is None or next_step(held, bench.now_ms()) is not Step.RETIRE:
                return None
            aside = replace(machine, stage=MachineStage.RETIRING)
            return Change(held.evolve(machine=None, retiring=(*held.retiring, aside), renew=False, ready=False))

        await bench.apply(put_aside)

    async def delete_machine(self, instance: Instance, machine: Machine) -> None:
        """Stop and remove one machine that was put aside; forgotten only once it is seen gone."""
        bench, driver = self._bench, self._bench.tools.driver
        deleted = instance.desired is DesiredState.DELETED
        if machine.power is not Power.OFF:
            async with bench.step("stop_machine", instance):
                await self._off(instance, machine, _DELETE_GRACE_S if deleted else bench.limits.stop_grace_s)
        async with bench.step("delete_machine", instance):
            await bench.call(driver.delete(bench.ref(machine)))
            reach("provisioner.mid_delete")
            seen = await look_at(bench, machine)
            if seen.phase is not Phase.ABSENT:
                raise DriverTransient("still_there", f"the machine is still {seen.phase.value} after it was deleted")
            await self._looker.store(instance, machine, seen)
        await bench.apply(lambda held: _forgotten(held, machine))

    async def delete_storage(self, instance: Instance) -> None:
        """Remove the data, put the tombstone into the routes, and end the operation."""
        bench = self._bench
        async with bench.step("delete_storage", instance):
            await bench.call(bench.tools.driver.delete_storage(instance.instance_id))
            reach("provisioner.after_delete_storage")

        def gone(held: Instance) -> Change | None:
            if next_step(held, bench.now_ms()) is not Step.DELETE_STORAGE:
                return None
            after = held.evolve(storage=StorageStage.GONE, reason=None, message=None, waiting_for=None, next_at_ms=None)
            return Change(after, route=RouteState.GONE if held.route_version else None, observed=True)

        await bench.apply(gone)

    async def rest(self, instance: Instance) -> Instance:
        """What was wished is so, or can only change by a new wish: close the operation and end the lane."""
        bench = self._bench

        def decide(held: Instance) -> Change | None:
            if held.generation != instance.generation or next_step(held, bench.now_ms()) is not Step.REST:
                return None
            shown = {} if held.failed else {"reason": None, "message": None}
            closed = held.route_version and held.route_state not in (RouteState.STOPPED, RouteState.GONE)
            after = held.evolve(next_at_ms=None, waiting_for=None, not_before_ms=None, **shown)
            return Change(after, route=RouteState.STOPPED if closed else None, observed=True)

        return await bench.apply(decide)


def _closing(held: Instance) -> RouteState | None:
    return RouteState.STOPPING if held.route_state in _OPEN else None


def _forgotten(held: Instance, machine: Machine) -> Change:
    return Change(held.evolve(retiring=tuple(one for one in held.retiring if one.machine_id != machine.machine_id)))
