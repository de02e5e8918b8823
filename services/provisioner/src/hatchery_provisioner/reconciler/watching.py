"""A ready instance: follow its controller, say when it degrades or recovers, and read the meter."""

from __future__ import annotations

from hatchery_common.contracts.routes import RouteState

from hatchery_provisioner.domain.instance import Instance, Machine
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.ports import ControllerState
from hatchery_provisioner.reconciler.probing import ProbeRefused, probe
from hatchery_provisioner.reconciler.starting import refuse_failed
from hatchery_provisioner.reconciler.workbench import Change, Workbench

_PAUSE_S = 1.0
_PROBE_S = 15.0


class Watching:
    """The watch of one lane; it remembers since when the controller of which boot has been silent."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._silence: tuple[str | None, int] | None = None

    async def watch(self, instance: Instance, machine: Machine) -> None:
        """One round: take the controller's present state, then wait until it changes, a wish comes, or a reading is due."""
        bench = self._bench
        state = await self._state(machine, since=None, wait_s=0.0)
        if state is None:
            await self._silent(instance, machine)
            return
        self._silence = None
        if state.phase == "ready" and instance.degraded:
            await self._recover(instance, machine)
            return
        await bench.apply(lambda held: _told(held, instance, machine, state, bench.now_ms()))
        refuse_failed(state)
        wait_s = bench.limits.meter_s / 2
        if instance.degraded and instance.deadline_ms is not None:
            wait_s = min(wait_s, max(0.1, (instance.deadline_ms - bench.now_ms()) / 1000))
        following = self._state(machine, since=state.revision, wait_s=wait_s)
        await bench.unless_woken(following, wait_s + 5)

    async def _state(self, machine: Machine, *, since: int | None, wait_s: float) -> ControllerState | None:
        address = machine.controller or ""
        return await self._bench.tools.controllers.state(address, machine.machine_id, since=since, wait_s=wait_s)

    async def _silent(self, instance: Instance, machine: Machine) -> None:
        """Nobody answers for a machine that runs: a moment of it is nothing, more of it is trouble."""
        bench, limit_s = self._bench, self._bench.limits.silent_s
        if self._silence is None or self._silence[0] != machine.boot_id:
            self._silence = (machine.boot_id, bench.now_ms())
        if bench.now_ms() - self._silence[1] >= limit_s * 1000:
            message = f"the machine's controller has not answered for {limit_s:g} s"
            await bench.apply(
                lambda held: _degraded(held, instance, machine, Reason.CONTROLLER_SILENT, message, bench.now_ms())
            )
        await bench.pause(min(_PAUSE_S, limit_s))  # the next look tells whether the machine has ended

    async def _recover(self, instance: Instance, machine: Machine) -> None:
        """The controller's word alone makes nothing ready again: the owner's path is tried, as after a start."""
        bench = self._bench
        try:
            answer = await bench.unless_woken(probe(bench, instance, machine), _PROBE_S)
        except ProbeRefused as refused:
            reason, message = refused.reason, refused.message
            await bench.apply(lambda held: _degraded(held, instance, machine, reason, message, bench.now_ms()))
            await bench.pause(_PAUSE_S)
            return
        if answer is not None:
            await bench.apply(lambda held: _ready(held, instance, machine, bench.now_ms()))


def _is_watched(held: Instance, seen: Instance, machine: Machine, now_ms: int) -> bool:
    """Whether what was just learnt of this machine is still about what the row holds."""
    same = held.machine is not None and held.machine.machine_id == machine.machine_id
    boot = held.machine.boot_id if held.machine is not None else None
    same = same and boot == machine.boot_id and held.generation == seen.generation
    return same and next_step(held, now_ms) is Step.WATCH


def _told(held: Instance, seen: Instance, machine: Machine, state: ControllerState, now_ms: int) -> Change | None:
    """Ready or degraded as the controller says."""
    if state.phase == "ready":
        return None if held.degraded else _ready(held, seen, machine, now_ms)
    reason = state.reason or f"gateway_{state.phase}"
    return _degraded(held, seen, machine, reason, state.message or reason.replace("_", " "), now_ms)


def _ready(held: Instance, seen: Instance, machine: Machine, now_ms: int) -> Change | None:
    """Ready; an operation that wished for it ends here."""
    if not _is_watched(held, seen, machine, now_ms):
        return None
    recovered = {"reason": None, "message": None} if held.degraded or held.reason else {}
    return Change(held.evolve(degraded=False, **recovered), route=RouteState.RUNNING, observed=True)


def _degraded(
    held: Instance, seen: Instance, machine: Machine, reason: str, message: str, now_ms: int
) -> Change | None:
    if not _is_watched(held, seen, machine, now_ms):
        return None
    return Change(held.evolve(degraded=True, reason=reason, message=message))
