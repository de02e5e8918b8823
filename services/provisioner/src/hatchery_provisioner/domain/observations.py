"""What a driver saw, and what it changes in an instance."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hatchery_common.contracts.instances import DesiredState

from hatchery_provisioner.domain.instance import Instance, MachineStage, Power, StorageStage
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.reasons import Reason


class Phase(StrEnum):
    """A machine as its driver sees it; a provider's state that we do not know is `unknown`, never a known one.

    `headless`: what was to end with the machine still runs, so it is to be stopped before anything else.
    """

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"
    HEADLESS = "headless"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Observation:
    """One look at a machine."""

    phase: Phase
    observed_at_ms: int
    boot_id: str | None = None
    started_at_ms: int | None = None
    endpoint: str | None = None
    controller: str | None = None
    detail: str = ""
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    endpoint_uid: int | None = None
    controller_uid: int | None = None


_POWER = {
    Phase.RUNNING: Power.ON,
    Phase.HEADLESS: Power.ON,
    Phase.STOPPED: Power.OFF,
    Phase.ABSENT: Power.OFF,
    Phase.UNKNOWN: Power.UNKNOWN,
}


def fold(instance: Instance, seen: Observation, limits: Limits, now_ms: int, *, by_us: bool = False) -> Instance:
    """The instance after a look at its current machine; of one that was seen absent, too: the look may have erred.

    `by_us`: we have just stopped it, whatever is wished by now.
    """
    machine = instance.machine
    if machine is None or not may_exist(instance):
        return instance
    same_boot = seen.boot_id is not None and seen.boot_id == machine.boot_id
    power = _POWER[seen.phase]
    if power is Power.UNKNOWN:
        return _out_of_sight(instance, seen).with_machine(power=power)
    if seen.phase is Phase.RUNNING:
        renewed = {} if same_boot else {"ready": False, "degraded": False}
        return instance.evolve(**renewed).with_machine(
            power=power,
            stage=MachineStage.CREATED,
            boot_id=seen.boot_id,
            endpoint=seen.endpoint or machine.endpoint,
            controller=seen.controller or machine.controller,
            endpoint_uid=seen.endpoint_uid if seen.endpoint else machine.endpoint_uid,
            controller_uid=seen.controller_uid if seen.controller else machine.controller_uid,
        )
    lost = machine.boot_id is not None and not by_us
    after = _ended_by_itself(instance, seen, limits, now_ms) if lost else instance
    if seen.phase is not Phase.ABSENT:
        stage = MachineStage.CREATED
    else:  # a ghost: the row is there, the machine is not
        stage = MachineStage.PLANNED if instance.desired is DesiredState.RUNNING else machine.stage
    return after.evolve(ready=False, degraded=False).with_machine(power=power, boot_id=None, stage=stage)


def may_exist(instance: Instance) -> bool:
    """Whether there is a machine to look at: it was created, or was before a look called it absent."""
    machine = instance.machine
    return machine is not None and (machine.stage is not MachineStage.PLANNED or instance.storage is StorageStage.USED)


def _out_of_sight(instance: Instance, seen: Observation) -> Instance:
    """A ready machine that nobody can see is degraded: neither called ready, nor stopped, nor replaced."""
    if not instance.ready:
        return instance
    return instance.evolve(
        degraded=True, reason=Reason.MACHINE_UNKNOWN, message=seen.detail or "the driver cannot see it"
    )


def _ended_by_itself(instance: Instance, seen: Observation, limits: Limits, now_ms: int) -> Instance:
    """A boot ended that nobody had asked to end: count it, and start again at once only if it had been healthy."""
    if instance.desired is not DesiredState.RUNNING or instance.failed or instance.renew:
        return instance
    since = instance.ready_since_ms
    healthy = instance.ready and since is not None and now_ms - since >= limits.healthy_s * 1000
    attempts = 1 if healthy else instance.attempts + 1
    pause = 0 if healthy else limits.backoff_ms(attempts)
    return instance.evolve(
        attempts=attempts,
        not_before_ms=now_ms + pause if pause else None,
        reason=Reason.MACHINE_LOST,
        message=seen.detail or "the machine ended by itself",
    )
