"""Commands: each is one short transaction that sets the desired state; none ever calls a driver."""

from __future__ import annotations

from collections.abc import Callable

from hatchery_common.bus import Delivery
from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.instances import InstanceCommand, ProvisionInstance, WakeInstance
from hatchery_common.errors import DependencyUnavailable
from hatchery_common.failpoints import reach
from structlog.typing import FilteringBoundLogger

from hatchery_provisioner.domain.instance import Operation, Verb
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.wishes import Wish, accept, may_wake, undelivered, wake
from hatchery_provisioner.ports import Store
from hatchery_provisioner.reconciler.records import record, report

Poke = Callable[[str], None]


async def accept_wish(
    delivery: Delivery[InstanceCommand], *, store: Store, clock: Clock, limits: Limits, driver: str, poke: Poke
) -> None:
    """Apply a person's wish if its generation is newer than the row's; else its operation is superseded."""
    command = delivery.message
    now_ms = to_ms(clock.now())
    async with store.transaction(delivery) as work:
        if not await work.first_delivery():
            return
        held = await work.lock(command.instance_id)
        verdict = accept(held, _wish(command), driver=driver, now_ms=now_ms)
        if verdict.instance is None:
            await report(work, command.tenant, command.instance_id, verdict.ended)
        else:
            await record(work, held, verdict.instance, limits=limits, now_ms=now_ms, ended=verdict.ended)
    reach("provisioner.after_intent_commit")
    poke(command.instance_id)
    reach("provisioner.before_ack")


def _wish(command: InstanceCommand) -> Wish:
    operation = Operation(command.operation_id, Verb(type(command).verb), command.generation)
    if isinstance(command, ProvisionInstance):
        return Wish(command.instance_id, command.tenant, operation, command.name, command.size)
    return Wish(command.instance_id, command.tenant, operation)


async def end_dead_wish(delivery: Delivery[InstanceCommand], *, store: Store, log: FilteringBoundLogger) -> None:
    """A wish went to the dead letters: its operation ends, so that nobody waits for nothing. Safe to repeat.

    Sent again from there, the wish still counts if no newer one has come; its operation stays ended.
    """
    command = delivery.message
    try:
        async with store.transaction(delivery) as work:
            held = await work.lock(command.instance_id)
            if (
                held is None or held.operation is None or held.operation.id != command.operation_id
            ):  # else it is in work
                await report(work, command.tenant, command.instance_id, (undelivered(held, _wish(command)),))
    except DependencyUnavailable:
        raise
    except Exception:  # repeating does not help, and would hold up the wishes behind it
        log.exception("provisioner.end_dead_wish.failed", operation_id=command.operation_id)


async def wake_instance(
    delivery: Delivery[WakeInstance], *, store: Store, clock: Clock, limits: Limits, poke: Poke
) -> None:
    """Start a sleeping instance; dropped when it comes late, saw an older wish, or a person had stopped the instance."""
    command = delivery.message
    now_ms = to_ms(clock.now())
    async with store.transaction(delivery) as work:
        if not await work.first_delivery():
            return
        held = await work.lock(command.instance_id)
        timely = may_wake(held, generation=command.generation, not_after_ms=command.not_after_ms, now_ms=now_ms)
        if held is None or held.tenant != command.tenant or not timely:
            return
        await record(work, held, wake(held, now_ms), limits=limits, now_ms=now_ms)
    poke(command.instance_id)
