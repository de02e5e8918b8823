"""What a wish does to an instance: the newer generation wins, and every operation ends exactly once."""

from __future__ import annotations

from dataclasses import dataclass

from hatchery_common.contracts.instances import DesiredState, InstanceStatus

from hatchery_provisioner.domain.instance import Instance, Operation, Power, StorageStage, Verb
from hatchery_provisioner.domain.reasons import Reason, explained

_DESIRED = {
    Verb.PROVISION: DesiredState.RUNNING,
    Verb.START: DesiredState.RUNNING,
    Verb.RESTART: DesiredState.RUNNING,
    Verb.STOP: DesiredState.STOPPED,
    Verb.DELETE: DesiredState.DELETED,
}


@dataclass(frozen=True)
class Wish:
    """A command, free of its transport."""

    instance_id: str
    tenant: str
    operation: Operation
    name: str = "default"
    size: str = "standard"


@dataclass(frozen=True)
class Ended:
    """The end of one operation: finished, failed or superseded."""

    operation: Operation
    outcome: str
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What becomes of the instance (None: nothing changes) and which operations end now."""

    instance: Instance | None
    ended: tuple[Ended, ...] = ()


def accept(held: Instance | None, wish: Wish, *, driver: str, now_ms: int) -> Verdict:
    """Apply a wish; an older or repeated one changes nothing."""
    operation = wish.operation
    if held is None:
        return _first(wish, driver, now_ms)
    if held.tenant != wish.tenant:
        return Verdict(None, (_unknown(operation),))
    if held.fence:
        return _at_fence(held, wish, driver, now_ms)
    if held.operation is not None and held.operation.id == operation.id:
        return Verdict(None)
    if operation.generation <= held.generation:
        return Verdict(None, (superseded(operation),))
    if held.desired is DesiredState.DELETED and operation.verb is not Verb.DELETE:
        message = "the instance is being deleted or is gone; provision a new one"
        return Verdict(None, (Ended(operation, "failed", Reason.DELETED, message),))
    ended = (superseded(held.operation),) if held.operation else ()
    return _finish_if_gone(_wanted(held, operation, now_ms), ended)


def _first(wish: Wish, driver: str, now_ms: int) -> Verdict:
    """The first wish of an id: provision creates it; a stop or a delete that overtook it leaves a row that fences it."""
    operation = wish.operation
    overtook = operation.verb is Verb.STOP and operation.generation > 1
    if not overtook and operation.verb not in (Verb.PROVISION, Verb.DELETE):
        return Verdict(None, (_unknown(operation),))
    fresh = Instance(
        instance_id=wish.instance_id,
        tenant=wish.tenant,
        name=wish.name,
        size=wish.size,
        driver=driver,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        since_ms=now_ms,
    )
    if overtook:  # there is nothing to stop
        stopped = _wanted(fresh, operation, now_ms).evolve(operation=None, next_at_ms=None, fence=True)
        return Verdict(stopped, (Ended(operation, "finished"),))
    if operation.verb is Verb.DELETE:
        fresh = fresh.evolve(storage=StorageStage.GONE)
    return _finish_if_gone(_wanted(fresh, operation, now_ms), ())


def _at_fence(held: Instance, wish: Wish, driver: str, now_ms: int) -> Verdict:
    """A newer wish finds no instance; the provision that was overtaken makes the fence an instance that is stopped."""
    operation = wish.operation
    if operation.generation > held.generation:
        return _first(wish, driver, now_ms)
    told = operation.verb is Verb.PROVISION
    stopped = held.evolve(name=wish.name, size=wish.size, fence=False) if told else None
    return Verdict(stopped, (superseded(operation),))


def _unknown(operation: Operation) -> Ended:
    return Ended(operation, "failed", Reason.UNKNOWN, "there is no such instance; provision it first")


def _finish_if_gone(instance: Instance, ended: tuple[Ended, ...]) -> Verdict:
    """A delete of something that is gone already is done at once: nobody is left to do it."""
    gone = instance.desired is DesiredState.DELETED and instance.storage is StorageStage.GONE
    if not gone or instance.machines or instance.operation is None:
        return Verdict(instance, ended)
    done = Ended(instance.operation, "finished")
    return Verdict(instance.evolve(operation=None, next_at_ms=None), (*ended, done))


def _wanted(held: Instance, operation: Operation, now_ms: int) -> Instance:
    desired = _DESIRED[operation.verb]
    return held.evolve(
        generation=operation.generation,
        operation=operation,
        desired=desired,
        stopped_by="user" if desired is DesiredState.STOPPED else None,
        renew=held.machine is not None and (operation.verb is Verb.RESTART or _must_be_replaced(held)),
        restarting=operation.verb is Verb.RESTART,
        failed=False,
        reason=None,
        message=None,
        attempts=0,
        not_before_ms=None,
        next_at_ms=now_ms,
    )


def _must_be_replaced(held: Instance) -> bool:
    """A machine that failed and is not off yet would only say again why it failed: a new wish gets a fresh one."""
    failed = held.failed and held.machine is not None and held.machine.power is not Power.OFF
    return failed or held.renew


def superseded(operation: Operation) -> Ended:
    """The end of an operation that a newer wish made void."""
    return Ended(operation, "superseded", Reason.NEWER_WISH, "a newer wish replaced this one")


def _is_replaced(held: Instance, wish: Wish) -> bool:
    """Whether a newer wish came instead; none has made what a provision before a fence was to make."""
    if held.fence and wish.operation.verb is Verb.PROVISION:
        return False
    return held.tenant == wish.tenant and held.generation >= wish.operation.generation


def undelivered(held: Instance | None, wish: Wish) -> Ended:
    """The end of an operation whose wish could not be taken up."""
    if held is not None and _is_replaced(held, wish):
        return superseded(wish.operation)
    message = explained(Reason.UNDELIVERABLE, "the wish could not be taken up")
    return Ended(wish.operation, "failed", Reason.UNDELIVERABLE, message)


def may_wake(held: Instance | None, *, generation: int, not_after_ms: int, now_ms: int) -> bool:
    """Whether a wake counts: it saw the present wish, is in time, and neither its owner nor a suspension stopped it."""
    if held is None or held.generation != generation or now_ms > not_after_ms:
        return False
    return held.desired is DesiredState.STOPPED and held.stopped_by == "policy"


def wake(held: Instance, now_ms: int) -> Instance:
    """The instance after a wake that counts."""
    return held.evolve(desired=DesiredState.RUNNING, stopped_by=None, failed=False, attempts=0, next_at_ms=now_ms)


def fail(held: Instance, reason: str, detail: str, now_ms: int) -> tuple[Instance, tuple[Ended, ...]]:
    """The instance in state error with what to do, and its operation failed."""
    message = explained(reason, detail)
    failed = held.evolve(
        failed=True,
        ready=False,
        degraded=False,
        renew=False,
        reason=reason,
        message=message,
        waiting_for=None,
        operation=None,
        not_before_ms=None,
        next_at_ms=now_ms,
    )
    ended = (Ended(held.operation, "failed", reason, message),) if held.operation else ()
    return failed, ended


_REACHED = {
    InstanceStatus.READY: (Verb.PROVISION, Verb.START, Verb.RESTART),
    InstanceStatus.STOPPED: (Verb.STOP,),
    InstanceStatus.DELETED: (Verb.DELETE,),
}


def finish(held: Instance, status: InstanceStatus) -> tuple[Instance, tuple[Ended, ...]]:
    """Close the open operation if this status is what it was for."""
    operation = held.operation
    if operation is None or operation.verb not in _REACHED.get(status, ()):
        return held, ()
    return held.evolve(operation=None, restarting=False), (Ended(operation, "finished"),)
