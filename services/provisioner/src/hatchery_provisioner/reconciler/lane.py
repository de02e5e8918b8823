"""One lane: look, judge, do the next step, again, until there is nothing left to do."""

from __future__ import annotations

from typing import Any

from hatchery_common.contracts.instances import DesiredState, InstanceStatus

from hatchery_provisioner.domain.errors import DriverError, DriverPermanent, PortTaken
from hatchery_provisioner.domain.instance import Instance, Machine, Power
from hatchery_provisioner.domain.judgement import overdue_reason
from hatchery_provisioner.domain.reasons import Reason, explained
from hatchery_provisioner.domain.status import with_fresh_deadline
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.domain.wishes import fail
from hatchery_provisioner.reconciler.looking import Looker
from hatchery_provisioner.reconciler.starting import Starting
from hatchery_provisioner.reconciler.stopping import Stopping
from hatchery_provisioner.reconciler.watching import Watching
from hatchery_provisioner.reconciler.workbench import Change, InstanceGone, Workbench

_UNKNOWN_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_STOP_BACKOFF_LONGEST_MS = 10_000
_OVERDUE = (Reason.STOP_OVERDUE, Reason.DELETE_OVERDUE)


class Lane:
    """The work on one instance; two lanes of one instance never run at once.

    `inherited`: its work began under an earlier owner, and this one has not taken it over yet.
    """

    def __init__(self, bench: Workbench, *, inherited: bool = False) -> None:
        self.bench = bench
        self.inherited = inherited
        self.generation = 0
        self._looker = Looker(bench)
        self._starting = Starting(bench, self._looker)
        self._stopping = Stopping(bench, self._looker)
        self._watching = Watching(bench)

    async def run(self) -> None:
        """Work until nothing is left; a failing driver is a matter of the instance, not of the lane."""
        while True:
            try:
                instance = await self.bench.read()
            except InstanceGone:
                return
            self.generation = instance.generation
            try:
                if await self._pass(instance):
                    return
            except DriverError as error:
                await self._trouble(instance, error)
            except InstanceGone:
                return

    async def _pass(self, instance: Instance) -> bool:
        """One round; True when the lane may end."""
        instance = await self._looker.look(instance)
        if self.inherited:
            instance = await self._take_over()
        instance = await self._judge(instance)
        step = next_step(instance, self.bench.now_ms())
        if step is Step.REST:
            after = await self._stopping.rest(instance)
            return after.next_at_ms is None
        if step is Step.WAIT:
            await self._wait(instance)
            return False
        await self._do(step, instance)
        return False

    async def _take_over(self) -> Instance:
        """Deadlines count the time of an owner's work: what an earlier one left has all of it again; attempts stay."""
        bench = self.bench
        after = await bench.apply(lambda held: Change(with_fresh_deadline(held, bench.limits, bench.now_ms())))
        self.inherited = False
        return after

    async def _do(self, step: Step, instance: Instance) -> None:
        machine = instance.machine
        if step is Step.PLAN:
            await self._starting.plan(instance)
        elif step is Step.RETIRE:
            await self._stopping.retire(instance)
        elif step is Step.DELETE_MACHINE:
            await self._stopping.delete_machine(instance, instance.retiring[0])
        elif step is Step.DELETE_STORAGE:
            await self._stopping.delete_storage(instance)
        elif machine is not None:
            await self._do_with(step, instance, machine)

    async def _do_with(self, step: Step, instance: Instance, machine: Machine) -> None:
        if step is Step.CREATE:
            await self._starting.create(instance, machine)
        elif step is Step.START:
            await self._starting.start(instance, machine)
        elif step is Step.WAIT_READY:
            await self._starting.wait_ready(instance, machine)
        elif step is Step.WATCH:
            await self._watching.watch(instance, machine)
        elif step is Step.STOP:
            await self._stopping.stop(instance, machine)

    async def _judge(self, instance: Instance) -> Instance:
        """Take the automatic exit of a state that has lasted too long."""
        found = overdue_reason(instance, self.bench.limits, self.bench.now_ms())
        if found is None:
            return instance
        reason, detail = found

        def decide(held: Instance) -> Change | None:
            if held.generation != instance.generation:
                return None
            if held.desired is DesiredState.RUNNING:
                failed, ended = fail(held, reason, detail, self.bench.now_ms())
                return Change(failed, ended=ended)
            return Change(held.evolve(reason=reason, message=explained(reason, detail)))

        return await self.bench.apply(decide)

    async def _wait(self, instance: Instance) -> None:
        unknown = instance.machine is not None and instance.machine.power is Power.UNKNOWN
        until_ms = instance.not_before_ms
        now_ms = self.bench.now_ms()
        seconds = _UNKNOWN_PAUSE_S if until_ms is None else (until_ms - now_ms) / 1000
        if unknown:
            seconds = max(seconds, _UNKNOWN_PAUSE_S)
        if instance.deadline_ms is not None and instance.deadline_ms > now_ms:  # one that is over was judged already
            seconds = min(seconds, max(0.05, (instance.deadline_ms - now_ms) / 1000))
        await self.bench.pause(min(max(seconds, 0.01), _LONGEST_PAUSE_S))

    async def _trouble(self, instance: Instance, error: DriverError) -> None:
        """A step failed: give up if repeating cannot help, else pause; a wish that came meanwhile is not held up by it."""
        bench = self.bench

        def decide(held: Instance) -> Change | None:
            if held.generation != instance.generation:
                return None
            now_ms = bench.now_ms()
            if held.desired is DesiredState.RUNNING and not held.failed and isinstance(error, DriverPermanent):
                failed, ended = fail(held, error.reason, error.message, now_ms)
                return Change(failed, ended=ended)
            attempts = held.attempts + 1
            pause_ms = bench.limits.backoff_ms(attempts)
            shown: dict[str, Any] = {"reason": error.reason, "message": explained(error.reason, error.message)}
            if held.desired is not DesiredState.RUNNING or held.failed:
                pause_ms = min(pause_ms, _STOP_BACKOFF_LONGEST_MS)
                shown = {} if held.failed or held.reason in _OVERDUE else shown  # else each try would tell both in turn
            elif isinstance(error, PortTaken):
                shown["renew"] = True  # the next machine's start looks for ports that are free
            return Change(held.evolve(attempts=attempts, not_before_ms=now_ms + pause_ms, **shown))

        after = await bench.apply(decide)
        if after.status is InstanceStatus.ERROR:
            bench.log.error("provisioner.instance.failed", reason=after.reason, message=after.message)
