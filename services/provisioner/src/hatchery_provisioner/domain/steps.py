"""What is to be done next for an instance: a function of what is stored alone, so that it survives any death."""

from __future__ import annotations

from enum import StrEnum

from hatchery_common.contracts.instances import DesiredState

from hatchery_provisioner.domain.instance import Instance, MachineStage, Power, StorageStage


class Step(StrEnum):
    """One piece of work; some of them are shown to people by these names."""

    REST = "rest"
    WAIT = "back_off"
    CLOSE = "close_route"
    RETIRE = "retire"
    STOP = "stop_machine"
    DELETE_MACHINE = "delete_machine"
    DELETE_STORAGE = "delete_storage"
    PLAN = "plan_machine"
    CREATE = "create_machine"
    START = "start_gateway"
    WAIT_READY = "wait_ready"
    WATCH = "watch"


def next_step(instance: Instance, now_ms: int) -> Step:
    """The next piece of work."""
    if instance.not_before_ms is not None and now_ms < instance.not_before_ms:
        return Step.WAIT
    if instance.desired is DesiredState.DELETED:
        return _towards_gone(instance)
    if instance.desired is DesiredState.STOPPED or instance.failed:
        return _towards_off(instance)
    return _towards_running(instance)


def _towards_gone(instance: Instance) -> Step:
    if instance.machine is not None:
        return Step.RETIRE
    if instance.retiring:
        return Step.DELETE_MACHINE
    return Step.REST if instance.storage is StorageStage.GONE else Step.DELETE_STORAGE


def _towards_off(instance: Instance) -> Step:
    if instance.retiring:
        return Step.DELETE_MACHINE
    running = instance.machine is not None and instance.machine.power is not Power.OFF
    return Step.STOP if running else Step.REST


def _towards_running(instance: Instance) -> Step:
    machine = instance.machine
    if machine is not None and instance.renew:
        return Step.RETIRE
    if instance.retiring:
        return Step.DELETE_MACHINE
    if machine is None:
        return Step.PLAN
    if machine.stage is MachineStage.PLANNED:
        return Step.CREATE
    if machine.power is Power.UNKNOWN:
        return Step.WAIT  # what we cannot see is neither started twice nor replaced
    if machine.is_headless:
        return Step.STOP
    if machine.power is Power.OFF:
        return Step.START
    return Step.WATCH if instance.ready else Step.WAIT_READY
