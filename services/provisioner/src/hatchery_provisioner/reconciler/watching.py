"""A ready instance: follow its controller, say when it degrades or recovers, and read the meter."""

from __future__ import annotations

from hatchery_common.contracts.routes import RouteState

from hatchery_provisioner.domain.instance import Instance, Machine
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.ports import ControllerState
from hatchery_provisioner.reconciler.starting import refuse_failed
from hatchery_provisioner.reconciler.workbench import Change, Workbench

_SILENT_PAUSE_S = 1.0


async def watch(bench: Workbench, instance: Instance, machine: Machine) -> None:
    """One round: take the controller's present state, then wait until it changes, a wish comes, or a reading is due."""
    state = await _state(bench, machine, since=None, wait_s=0.0)
    if state is None:
        await bench.pause(_SILENT_PAUSE_S)  # the next look tells whether the machine has ended
        return
    await bench.apply(lambda held: _told(held, instance, machine, state, bench.now_ms()))
    refuse_failed(state)
    wait_s = bench.limits.meter_s / 2
    if instance.degraded and instance.deadline_ms is not None:
        wait_s = min(wait_s, max(0.1, (instance.deadline_ms - bench.now_ms()) / 1000))
    following = _state(bench, machine, since=state.revision, wait_s=wait_s)
    await bench.unless_woken(following, wait_s + 5)


async def _state(bench: Workbench, machine: Machine, *, since: int | None, wait_s: float) -> ControllerState | None:
    address = machine.controller or ""
    return await bench.tools.controllers.state(address, machine.machine_id, since=since, wait_s=wait_s)


def _told(held: Instance, seen: Instance, machine: Machine, state: ControllerState, now_ms: int) -> Change | None:
    """Ready or degraded as the controller says; an operation that wished for ready ends here if it is."""
    same = held.machine is not None and held.machine.machine_id == machine.machine_id
    if not same or held.generation != seen.generation or next_step(held, now_ms) is not Step.WATCH:
        return None
    if state.phase == "ready":
        recovered = {"reason": None, "message": None} if held.degraded or held.reason else {}
        return Change(held.evolve(degraded=False, **recovered), route=RouteState.RUNNING, observed=True)
    reason = state.reason or f"gateway_{state.phase}"
    return Change(held.evolve(degraded=True, reason=reason, message=state.message or reason.replace("_", " ")))
