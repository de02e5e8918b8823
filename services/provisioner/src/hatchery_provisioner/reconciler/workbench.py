"""What a lane works with: fenced transactions, driver calls with a limit, steps that are told, waits that a wish ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.operations import InstanceStepFinished, InstanceStepStarted
from hatchery_common.contracts.routes import RouteState
from hatchery_common.errors import HatcheryError
from hatchery_common.timers import Wake
from structlog.typing import FilteringBoundLogger

from hatchery_provisioner.domain.errors import DriverAmbiguous, DriverError, DriverTransient
from hatchery_provisioner.domain.instance import Instance, Machine
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.domain.wishes import Ended
from hatchery_provisioner.ports import Controllers, MachineDriver, MachineRef, Prober, Secrets, Store, Transaction
from hatchery_provisioner.reconciler.records import put_route, record

T = TypeVar("T")
LOG_TAIL_LINES = 30


class InstanceGone(Exception):
    """The row vanished: somebody removed it by hand."""


class Superseded(Exception):
    """A newer wish arrived: the present work ends here and the lane looks again."""


@dataclass(frozen=True)
class Tools:
    """The reconciler's ports."""

    store: Store
    driver: MachineDriver
    controllers: Controllers
    prober: Prober
    secrets: Secrets
    clock: Clock
    limits: Limits
    log: FilteringBoundLogger


@dataclass(frozen=True)
class Change:
    """What a transaction makes of an instance: its new values, its route's next state, the operations that end."""

    instance: Instance
    route: RouteState | None = None
    ended: tuple[Ended, ...] = ()
    observed: bool = False


Decide = Callable[[Instance], Change | None]
Extra = Callable[[Transaction], Awaitable[None]]


class Workbench:
    """The tools of one lane, bound to its instance and to the epoch of this owner."""

    def __init__(self, tools: Tools, instance_id: str, epoch: int) -> None:
        self.tools = tools
        self.instance_id = instance_id
        self.epoch = epoch
        self.wake = Wake()
        self.limits = tools.limits
        self.log = tools.log.bind(instance_id=instance_id)

    def now_ms(self) -> int:
        return to_ms(self.tools.clock.now())

    async def read(self) -> Instance:
        """The row as it is now."""
        instance = await self.tools.store.get(self.instance_id)
        if instance is None:
            raise InstanceGone
        return instance

    async def apply(self, decide: Decide, *, extra: Extra | None = None) -> Instance:
        """One fenced transaction on the locked row; `decide` sees what is true now and may refuse by None."""
        async with self.tools.store.transaction(epoch=self.epoch) as work:
            held = await work.lock(self.instance_id)
            if held is None:
                raise InstanceGone
            change = decide(held)
            if extra is not None:
                await extra(work)
            if change is None:
                return held
            now_ms, after = self.now_ms(), change.instance
            route = change.route if change.route is not held.route_state else None
            if route is None and _other_users(held, after):
                route = after.route_state
            if route is not None:
                after = await put_route(work, after, route, now_ms)
            if after == held and not change.ended and not (change.observed and held.operation):
                return held
            return await record(
                work, held, after, limits=self.limits, now_ms=now_ms, ended=change.ended, observed=change.observed
            )

    async def call(self, work: Awaitable[T], limit_s: float | None = None) -> T:
        """A driver call with an end: past its limit it counts as ambiguous, and a fault of the driver's as transient."""
        limit_s = self.limits.call_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError:
            raise DriverAmbiguous(Reason.DRIVER_TIMEOUT, f"the driver did not answer within {limit_s:g} s") from None
        except HatcheryError:
            raise
        except Exception as error:  # the instance's deadlines must be judged whatever its driver does
            self.log.exception("provisioner.driver.broken")
            raise DriverTransient(Reason.DRIVER_BROKEN, f"the driver broke: {type(error).__name__}: {error}") from error

    @asynccontextmanager
    async def step(self, name: str, instance: Instance) -> AsyncGenerator[None]:
        """Tell the world that a step begins and how it ended, with its duration and, when it failed, the log's tail."""
        operation_id = instance.operation.id if instance.operation else None
        common: dict[str, Any] = {
            "tenant": instance.tenant,
            "instance_id": instance.instance_id,
            "operation_id": operation_id,
            "step": name,
        }
        await self._tell(InstanceStepStarted(**common))
        began = time.monotonic()

        def finished(**fields: Any) -> InstanceStepFinished:
            return InstanceStepFinished(duration_ms=int((time.monotonic() - began) * 1000), **common, **fields)

        try:
            yield
        except Superseded:
            await self._tell(finished(ok=False, reason=Reason.NEWER_WISH, message="a newer wish arrived"))
            raise
        except DriverError as error:
            tail = await self._log_tail(instance.machine)
            self.log.warning("provisioner.step.failed", step=name, reason=error.reason, message=error.message)
            await self._tell(finished(ok=False, reason=error.reason, message=error.message, log_tail=tail))
            raise
        else:
            await self._tell(finished(ok=True))

    async def _tell(self, event: InstanceStepStarted | InstanceStepFinished) -> None:
        async with self.tools.store.transaction(epoch=self.epoch) as work:
            await work.lock(self.instance_id)
            await work.emit(event, operation_id=event.operation_id)

    async def _log_tail(self, machine: Machine | None) -> tuple[str, ...]:
        if machine is None:
            return ()
        try:
            return await self.call(self.tools.driver.logs(self.ref(machine), lines=LOG_TAIL_LINES), 5.0)
        except DriverError:
            return ()

    def ref(self, machine: Machine) -> MachineRef:
        """The machine as its driver knows it."""
        return MachineRef(self.instance_id, machine.machine_id, machine.state)

    async def pause(self, seconds: float) -> bool:
        """Wait, unless a wish comes first; True when one came."""
        return await self.wake.wait(seconds)

    async def unless_woken(self, work: Coroutine[Any, Any, T], limit_s: float) -> T | None:
        """The result of a wait on something else, or None when a wish or the limit came first."""
        task = asyncio.create_task(work)
        woken = asyncio.create_task(self.wake.wait(limit_s))
        try:
            await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, woken):
                one.cancel()
            await asyncio.wait({task, woken})


def _other_users(held: Instance, after: Instance) -> bool:
    """Whether an open route names other users than the machine now has: of one stored by an older version none were known."""
    before, now = held.machine, after.machine
    if before is None or now is None or after.route_state not in (RouteState.RUNNING, RouteState.STARTING):
        return False
    return (before.endpoint_uid, before.controller_uid) != (now.endpoint_uid, now.controller_uid)
