"""From nothing to ready: plan, create, start, wait for the controller, and ask the data plane."""

from __future__ import annotations

import asyncio
import contextlib

from hatchery_common.contracts.gateways import ProbeResponse
from hatchery_common.contracts.instances import DesiredState
from hatchery_common.contracts.routes import RouteState
from hatchery_common.errors import HatcheryError, OwnershipLost
from hatchery_common.failpoints import reach
from hatchery_common.ids import new_id

from hatchery_provisioner.domain.errors import DriverPermanent, DriverTransient, PortTaken
from hatchery_provisioner.domain.instance import Instance, Machine, MachineStage, Power, StorageStage
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.ports import ControllerState, MachineSpec, Placement
from hatchery_provisioner.reconciler.looking import Looker
from hatchery_provisioner.reconciler.probing import ProbeRefused, probe
from hatchery_provisioner.reconciler.workbench import Change, Superseded, Workbench

_LONG_POLL_S = 20.0
_PROBE_ROUND_S = 10.0
_UNDO_S = 8.0  # less than the scheduler waits for its lanes
_UNDO_GRACE_S = 5.0  # leaves time to kill it
_NO_ANSWER_FIRST_S, _NO_ANSWER_LONGEST_S = 0.03, 0.3
_GATEWAY_PORT_TAKEN = "gateway_port_taken"  # as the controller calls it


class MachineLost(DriverTransient):
    """The machine ended by itself; the look that saw it has counted it."""


class Starting:
    """The steps towards ready."""

    def __init__(self, bench: Workbench, looker: Looker) -> None:
        self._bench = bench
        self._looker = looker

    async def plan(self, instance: Instance) -> None:
        """Store the id of the machine before anything is created under it."""
        machine = Machine(new_id("mch"), instance.generation)

        def decide(held: Instance) -> Change | None:
            wanted = next_step(held, self._bench.now_ms()) is Step.PLAN
            return Change(held.evolve(machine=machine, ready=False)) if wanted else None

        await self._bench.apply(decide)

    async def create(self, instance: Instance, machine: Machine) -> None:
        """Create or adopt the machine and store where it is."""
        bench = self._bench
        spec = MachineSpec(
            instance_id=instance.instance_id,
            tenant=instance.tenant,
            machine_id=machine.machine_id,
            generation=machine.generation,
            epoch=bench.epoch,
            size=instance.size,
            operation_id=instance.operation.id if instance.operation else None,
            expects_storage=instance.storage is StorageStage.USED,
        )
        async with bench.step("prepare", instance):
            await bench.call(bench.tools.driver.prepare_image())
        async with bench.step("create_machine", instance):
            placement = await bench.call(bench.tools.driver.ensure(spec))
            reach("provisioner.after_driver_create")
            await bench.apply(lambda held: _placed(held, machine, placement, MachineStage.CREATED))

    async def start(self, instance: Instance, machine: Machine) -> None:
        """Start the machine. Until it is seen again its power is unknown: a stop in between must not call it stopped."""
        bench = self._bench

        def intend(held: Instance) -> Change | None:
            if next_step(held, bench.now_ms()) is not Step.START:
                return None
            open_route = held.route_state in (RouteState.RUNNING, RouteState.STARTING)
            after = held.evolve(storage=StorageStage.USED, waiting_for="machine").with_machine(power=Power.UNKNOWN)
            return Change(after, route=RouteState.STOPPED if open_route else None)

        after = await bench.apply(intend)
        if after.machine is None or after.machine.power is not Power.UNKNOWN or not _same(after, instance):
            return
        begun = False
        try:
            # the step's first transaction compares the epoch just before the effect, the last one just after it
            async with bench.step("start_gateway", instance):
                await bench.call(bench.tools.driver.prepare_image())  # it may have gone since the machine was created
                secrets = bench.tools.secrets.of(machine.machine_id)
                begun = True
                placement = await bench.call(bench.tools.driver.start(bench.ref(machine), secrets))
                reach("provisioner.after_driver_start")
                await bench.apply(
                    lambda held: _placed(held, machine, placement, MachineStage.CREATED, RouteState.STARTING)
                )
        except (OwnershipLost, asyncio.CancelledError):
            if begun:  # else it is no start of ours that runs, and the next owner may be ending it in order
                await self._undo_start(machine)
            raise

    async def _undo_start(self, machine: Machine) -> None:
        """We may have been frozen for long and started what the next owner had stopped: what nobody wants now is stopped."""
        bench = self._bench
        with contextlib.suppress(HatcheryError, TimeoutError):
            async with asyncio.timeout(_UNDO_S):
                held = await bench.tools.store.get(bench.instance_id)
                if held is not None and machine.machine_id == _wanted(held):
                    return
                bench.log.warning("provisioner.late_start.undone", machine_id=machine.machine_id)
                grace_s = min(bench.limits.stop_grace_s, _UNDO_GRACE_S)
                await bench.call(bench.tools.driver.stop(bench.ref(machine), grace_s=grace_s))

    async def wait_ready(self, instance: Instance, machine: Machine) -> None:
        """Follow the controller up to ready, then probe along the owner's path."""
        bench = self._bench
        await bench.apply(lambda held: _route_for_probe(held, machine))
        try:
            async with bench.step("wait_ready", instance):
                await self._until_ready(instance, machine)
            instance = await self._still_wanted(machine)
            async with bench.step("probe", instance):
                answer = await self._probe(instance, machine)
        except (Superseded, MachineLost):
            return
        except ProbeRefused as error:
            refused = error
            await bench.apply(lambda held: _refused(held, instance, refused))
            return
        await bench.apply(lambda held: _ready(held, instance, machine, answer, bench.now_ms()))

    async def _until_ready(self, instance: Instance, machine: Machine) -> ControllerState:
        """Returns at the controller's `ready`; raises DriverError for a failure, a lost machine or the deadline."""
        bench, since, pause_s = self._bench, None, _NO_ANSWER_FIRST_S
        last: ControllerState | None = None
        while True:
            left_s = self._left_s(instance)
            if left_s <= 0:
                raise DriverPermanent(Reason.START_DEADLINE, _how_far(last))
            poll = bench.tools.controllers.state(
                machine.controller or "", machine.machine_id, since=since, wait_s=min(_LONG_POLL_S, left_s)
            )
            state = await bench.unless_woken(poll, min(_LONG_POLL_S + 5, left_s))
            if state is not None:
                last, since, pause_s = state, state.revision, _NO_ANSWER_FIRST_S
                if state.phase == "ready":
                    return state
                refuse_failed(state)
            instance = await self._still_wanted(machine)
            if state is None:
                await bench.pause(pause_s)
                pause_s = min(pause_s * 1.5, _NO_ANSWER_LONGEST_S)

    async def _still_wanted(self, machine: Machine) -> Instance:
        """The row after a look; raises Superseded for another wish, MachineLost for a machine that ended."""
        before = await self._bench.read()
        instance = await self._looker.look(before)
        same = instance.machine is not None and instance.machine.machine_id == machine.machine_id
        now_ms = self._bench.now_ms()
        if same and next_step(instance, now_ms) is Step.WAIT_READY:
            return instance
        if same and instance.generation == before.generation and next_step(before, now_ms) is Step.WAIT_READY:
            raise MachineLost(Reason.MACHINE_LOST, instance.message or "the machine ended by itself")
        raise Superseded

    def _left_s(self, instance: Instance) -> float:
        deadline_ms = instance.deadline_ms
        if deadline_ms is None:
            return self._bench.limits.start_s
        return (deadline_ms - self._bench.now_ms()) / 1000

    async def _probe(self, instance: Instance, machine: Machine) -> ProbeResponse:
        """Ask until the answer is yes; after a round of refusals the controller is asked again."""
        bench, pause_s = self._bench, self._bench.limits.probe_pause_s
        until_ms = bench.now_ms() + int(min(_PROBE_ROUND_S, max(0.0, self._left_s(instance))) * 1000)
        while True:
            try:
                return await probe(bench, instance, machine)
            except ProbeRefused:
                if bench.now_ms() >= until_ms:
                    raise
            if await bench.pause(pause_s):
                await self._still_wanted(machine)
            pause_s = min(pause_s * 2, 1.0)


def refuse_failed(state: ControllerState) -> None:
    """Raise DriverPermanent for a state that no waiting mends, PortTaken for one that another machine mends."""
    if state.phase == "failed" and state.reason == _GATEWAY_PORT_TAKEN:
        raise PortTaken(Reason.PORT_TAKEN, state.message or "another program holds the gateway's port")
    if state.phase == "failed":
        raise DriverPermanent(state.reason or "gateway_failed", state.message or "the gateway failed")
    if state.phase == "degraded" and state.reason == "crash_loop":
        raise DriverPermanent(Reason.CRASH_LOOP, state.message or "the gateway keeps ending by itself")


def _how_far(last: ControllerState | None) -> str:
    if last is None:
        return "not ready in time: the machine's controller never answered"
    return f"not ready in time: the gateway got as far as {last.phase}" + (f" ({last.message})" if last.message else "")


def _wanted(held: Instance) -> str | None:
    """The machine that should run by now."""
    wanted = held.desired is DesiredState.RUNNING and not held.failed and not held.renew
    return held.machine.machine_id if wanted and held.machine is not None else None


def _same(held: Instance, instance: Instance) -> bool:
    ids = (held.machine.machine_id if held.machine else None, instance.machine.machine_id if instance.machine else None)
    return held.generation == instance.generation and ids[0] == ids[1] and held.desired is DesiredState.RUNNING


def _placed(
    held: Instance, machine: Machine, placement: Placement, stage: MachineStage, route: RouteState | None = None
) -> Change | None:
    """Where the machine is, whatever is wished by now; the route opens only while it is still wanted."""
    if held.machine is None or held.machine.machine_id != machine.machine_id:
        return None
    after = held.with_machine(
        stage=stage,
        state=placement.state,
        endpoint=placement.endpoint or held.machine.endpoint,
        controller=placement.controller or held.machine.controller,
        endpoint_uid=placement.endpoint_uid if placement.endpoint else held.machine.endpoint_uid,
        controller_uid=placement.controller_uid if placement.controller else held.machine.controller_uid,
    )
    wanted = held.desired is DesiredState.RUNNING and not held.failed
    return Change(after.evolve(waiting_for="gateway"), route=route if wanted else None)


def _refused(held: Instance, seen: Instance, refused: ProbeRefused) -> Change | None:
    if not _same(held, seen) or held.failed:
        return None
    return Change(held.evolve(reason=refused.reason, message=refused.message))


def _route_for_probe(held: Instance, machine: Machine) -> Change | None:
    """After a death or an adoption the route may still be missing or closed."""
    wanted = held.desired is DesiredState.RUNNING and not held.failed and held.machine is not None
    if not wanted or held.machine is None or held.machine.machine_id != machine.machine_id:
        return None
    return Change(held, route=RouteState.STARTING)


def _ready(held: Instance, seen: Instance, machine: Machine, answer: ProbeResponse, now_ms: int) -> Change | None:
    if not _same(held, seen) or held.failed or held.machine is None or held.machine.power is not Power.ON:
        return None
    after = held.evolve(
        ready=True,
        degraded=False,
        restarting=False,
        ready_since_ms=now_ms,
        last_ready_at_ms=now_ms,
        gateway_version=answer.gateway_version or held.gateway_version,
        reason=None,
        message=None,
        waiting_for=None,
        not_before_ms=None,
        next_at_ms=now_ms,
    )
    return Change(after, route=RouteState.RUNNING, observed=True)
