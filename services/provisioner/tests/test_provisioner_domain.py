"""The pure part: wishes, status, steps, metering, back-off."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hatchery_common.contracts.instances import DesiredState, InstanceStatus
from hatchery_provisioner.domain import metering
from hatchery_provisioner.domain.instance import Instance, Machine, MachineStage, Operation, Power, StorageStage, Verb
from hatchery_provisioner.domain.judgement import overdue_reason
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.observations import Observation, Phase, fold
from hatchery_provisioner.domain.reasons import Reason, explained
from hatchery_provisioner.domain.status import derive, public_state, settle
from hatchery_provisioner.domain.steps import Step, next_step
from hatchery_provisioner.domain.wishes import Wish, accept, may_wake

LIMITS = Limits()


def instance(**changes: object) -> Instance:
    base = Instance("ins_1", "tenant-a", "default", "standard", "fake", 0, 0, 0, generation=1)
    return base.evolve(**changes)


def machine(**changes: object) -> Machine:
    return replace(Machine("mch_1", 1, MachineStage.CREATED, Power.ON, boot_id="b1"), **changes)  # type: ignore[arg-type]


def wish(verb: Verb, generation: int, operation: str = "op_x", tenant: str = "tenant-a") -> Wish:
    return Wish("ins_1", tenant, Operation(operation, verb, generation))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "provisioning"),
        ({"storage": StorageStage.USED}, "starting"),
        ({"restarting": True}, "restarting"),
        ({"ready": True, "machine": machine()}, "ready"),
        ({"ready": True, "degraded": True}, "degraded"),
        ({"ready": True, "renew": True, "restarting": True}, "restarting"),
        ({"failed": True, "machine": machine()}, "error"),
        ({"desired": DesiredState.STOPPED, "machine": machine()}, "stopping"),
        ({"desired": DesiredState.STOPPED, "machine": machine(power=Power.UNKNOWN)}, "stopping"),
        ({"desired": DesiredState.STOPPED, "machine": machine(power=Power.OFF)}, "stopped"),
        ({"desired": DesiredState.STOPPED, "failed": True}, "stopped"),
        ({"desired": DesiredState.DELETED, "machine": machine()}, "deleting"),
        ({"desired": DesiredState.DELETED, "storage": StorageStage.USED}, "deleting"),
        ({"desired": DesiredState.DELETED, "storage": StorageStage.GONE, "retiring": (machine(),)}, "deleting"),
        ({"desired": DesiredState.DELETED, "storage": StorageStage.GONE}, "deleted"),
    ],
)
def test_status_follows_from_wish_and_observation(changes: dict[str, object], status: str) -> None:
    assert derive(instance(**changes)).value == status


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, Step.PLAN),
        ({"machine": machine(stage=MachineStage.PLANNED)}, Step.CREATE),
        ({"machine": machine(power=Power.OFF)}, Step.START),
        ({"machine": machine(power=Power.UNKNOWN)}, Step.WAIT),
        ({"machine": machine()}, Step.WAIT_READY),
        ({"machine": machine(), "ready": True}, Step.WATCH),
        ({"machine": machine(), "renew": True, "ready": True}, Step.RETIRE),
        ({"retiring": (machine(),)}, Step.DELETE_MACHINE),
        ({"not_before_ms": 2_000}, Step.WAIT),
        ({"failed": True, "machine": machine()}, Step.STOP),
        ({"failed": True, "machine": machine(power=Power.OFF)}, Step.REST),
        ({"desired": DesiredState.STOPPED, "machine": machine()}, Step.STOP),
        ({"desired": DesiredState.STOPPED, "machine": machine(power=Power.UNKNOWN)}, Step.STOP),
        ({"desired": DesiredState.STOPPED}, Step.REST),
        ({"desired": DesiredState.DELETED, "machine": machine()}, Step.RETIRE),
        ({"desired": DesiredState.DELETED, "retiring": (machine(),)}, Step.DELETE_MACHINE),
        ({"desired": DesiredState.DELETED}, Step.DELETE_STORAGE),
        ({"desired": DesiredState.DELETED, "storage": StorageStage.GONE}, Step.REST),
    ],
)
def test_next_step(changes: dict[str, object], step: Step) -> None:
    assert next_step(instance(**changes), 1_000) is step


def test_newer_wish_supersedes_the_open_operation() -> None:
    held = instance(operation=Operation("op_1", Verb.PROVISION, 1))
    verdict = accept(held, wish(Verb.STOP, 2, "op_2"), driver="fake", now_ms=5)
    assert verdict.instance is not None
    assert verdict.instance.desired is DesiredState.STOPPED
    assert [(one.operation.id, one.outcome) for one in verdict.ended] == [("op_1", "superseded")]


def test_older_wish_is_superseded_and_changes_nothing() -> None:
    verdict = accept(instance(generation=5), wish(Verb.START, 4), driver="fake", now_ms=5)
    assert verdict.instance is None
    assert verdict.ended[0].outcome == "superseded"


def test_repeated_wish_ends_nothing() -> None:
    held = instance(operation=Operation("op_x", Verb.PROVISION, 1))
    assert accept(held, wish(Verb.PROVISION, 1), driver="fake", now_ms=5).ended == ()


def test_a_failed_machine_that_still_runs_is_replaced_by_the_next_start() -> None:
    """Its controller would only repeat why it failed: the new operation must not end by the old reason."""
    failed = instance(failed=True, reason="crash_loop", machine=machine())
    started = accept(failed, wish(Verb.START, 2), driver="fake", now_ms=5).instance
    assert started is not None
    assert next_step(started, 5) is Step.RETIRE
    stopped = accept(failed, wish(Verb.STOP, 2), driver="fake", now_ms=5).instance
    assert stopped is not None
    assert next_step(stopped, 5) is Step.STOP
    again = accept(stopped, wish(Verb.START, 3, "op_y"), driver="fake", now_ms=5).instance
    assert again is not None
    assert next_step(again, 5) is Step.RETIRE
    off = instance(failed=True, machine=machine(power=Power.OFF))
    kept = accept(off, wish(Verb.START, 2), driver="fake", now_ms=5).instance
    assert kept is not None
    assert next_step(kept, 5) is Step.START


def test_wishes_for_what_is_not_there_or_not_theirs() -> None:
    assert accept(None, wish(Verb.START, 1), driver="fake", now_ms=0).ended[0].reason == Reason.UNKNOWN
    other = accept(instance(), wish(Verb.STOP, 9, tenant="tenant-b"), driver="fake", now_ms=0)
    assert other.instance is None
    assert other.ended[0].reason == Reason.UNKNOWN


def test_delete_before_provision_leaves_a_fence() -> None:
    verdict = accept(None, wish(Verb.DELETE, 2), driver="fake", now_ms=0)
    assert verdict.instance is not None
    assert derive(verdict.instance) is InstanceStatus.DELETED
    assert verdict.ended[0].outcome == "finished"
    late = accept(verdict.instance, wish(Verb.PROVISION, 1, "op_late"), driver="fake", now_ms=0)
    assert late.ended[0].outcome == "superseded"


def test_stop_before_provision_leaves_a_fence_that_the_provision_fills_in() -> None:
    verdict = accept(None, wish(Verb.STOP, 2), driver="fake", now_ms=0)
    assert verdict.instance is not None
    assert derive(verdict.instance) is InstanceStatus.STOPPED
    assert (verdict.instance.operation, verdict.instance.next_at_ms) == (None, None)
    assert verdict.ended[0].outcome == "finished"
    told = Wish("ins_1", "tenant-a", Operation("op_late", Verb.PROVISION, 1), "mine", "large")
    late = accept(verdict.instance, told, driver="fake", now_ms=1)
    assert late.ended[0].outcome == "superseded"
    assert late.instance is not None
    assert (late.instance.name, late.instance.size) == ("mine", "large")
    assert late.instance.desired is DesiredState.STOPPED
    assert (verdict.instance.fence, late.instance.fence) == (True, False)
    used = late.instance.evolve(storage=StorageStage.USED)
    assert accept(used, replace(told, size="huge"), driver="fake", now_ms=1).instance is None
    first = accept(None, wish(Verb.STOP, 1), driver="fake", now_ms=0)
    assert (first.instance, first.ended[0].reason) == (None, Reason.UNKNOWN)


def test_nothing_revives_a_deleted_instance() -> None:
    held = instance(desired=DesiredState.DELETED)
    verdict = accept(held, wish(Verb.START, 9), driver="fake", now_ms=0)
    assert verdict.instance is None
    assert (verdict.ended[0].outcome, verdict.ended[0].reason) == ("failed", Reason.DELETED)


@pytest.mark.parametrize(
    ("generation", "not_after", "stopped_by", "wakes"),
    [(1, 100, "policy", True), (0, 100, "policy", False), (1, 10, "policy", False), (1, 100, "user", False)],
)
def test_wake_rules(generation: int, not_after: int, stopped_by: str, wakes: bool) -> None:
    held = instance(desired=DesiredState.STOPPED, stopped_by=stopped_by)
    assert may_wake(held, generation=generation, not_after_ms=not_after, now_ms=50) is wakes
    assert not may_wake(None, generation=1, not_after_ms=100, now_ms=0)


def test_settle_dates_a_new_status_and_keeps_an_old_one() -> None:
    first = settle(None, instance(), LIMITS, 1_000)
    assert (first.since_ms, first.deadline_ms, first.version) == (1_000, 181_000, 1)
    again = settle(first, first.evolve(waiting_for="gateway"), LIMITS, 5_000)
    assert (again.since_ms, again.deadline_ms, again.version) == (1_000, 181_000, 2)
    ready = settle(again, again.evolve(ready=True, machine=machine()), LIMITS, 9_000)
    assert (ready.since_ms, ready.deadline_ms) == (9_000, None)
    assert public_state(ready).can == ("stop", "restart", "delete")
    moved = {one.type: one.last_transition_ms for one in ready.conditions}
    assert moved["gateway_ready"] == 9_000
    assert moved["route_open"] == 1_000


def test_a_boot_that_ends_by_itself_starts_again_at_once_if_it_was_healthy() -> None:
    held = instance(machine=machine(), ready=True, ready_since_ms=0)
    gone = Observation(Phase.STOPPED, 60_000)
    healthy = fold(held, gone, LIMITS, 60_000)
    assert (healthy.attempts, healthy.not_before_ms, healthy.ready) == (1, None, False)
    early = fold(held.evolve(attempts=2), gone, LIMITS, 1_000)
    assert early.attempts == 3
    assert early.not_before_ms == 1_000 + LIMITS.backoff_ms(3)


def test_a_stop_that_was_asked_for_is_no_crash() -> None:
    held = instance(desired=DesiredState.STOPPED, machine=machine())
    assert fold(held, Observation(Phase.STOPPED, 9), LIMITS, 9).attempts == 0


def test_unknown_is_never_a_known_state() -> None:
    held = instance(machine=machine(), ready=True)
    unseen = fold(held, Observation(Phase.UNKNOWN, 9), LIMITS, 9)
    assert unseen.machine is not None
    assert unseen.machine.power is Power.UNKNOWN
    assert derive(unseen) is InstanceStatus.DEGRADED
    assert next_step(unseen, 9) is Step.WAIT


def test_a_ghost_is_created_again_and_a_new_boot_is_not_ready() -> None:
    held = instance(machine=machine(), ready=True, ready_since_ms=0)
    ghost = fold(held, Observation(Phase.ABSENT, 90_000), LIMITS, 90_000)
    assert next_step(ghost, 90_000) is Step.CREATE
    other = fold(held, Observation(Phase.RUNNING, 9, boot_id="b2"), LIMITS, 9)
    assert not other.ready


def test_what_outlived_its_machine_is_stopped_before_anything_else() -> None:
    held = instance(machine=machine(), ready=True, ready_since_ms=0)
    left = fold(held, Observation(Phase.HEADLESS, 90_000), LIMITS, 90_000)
    assert (left.ready, next_step(left, 90_000)) == (False, Step.STOP)
    stopped = fold(left.evolve(desired=DesiredState.STOPPED), Observation(Phase.HEADLESS, 9), LIMITS, 9)
    assert derive(stopped) is InstanceStatus.STOPPING
    off = fold(left, Observation(Phase.STOPPED, 90_001), LIMITS, 90_001)
    assert (off.attempts, next_step(off, 90_001)) == (1, Step.START)


@pytest.mark.parametrize(
    ("phase", "step"), [(Phase.RUNNING, Step.STOP), (Phase.HEADLESS, Step.STOP), (Phase.STOPPED, Step.REST)]
)
def test_a_machine_that_was_called_absent_and_is_seen_again_is_there(phase: Phase, step: Step) -> None:
    held = instance(machine=machine(), ready=True, storage=StorageStage.USED)
    absent = fold(held, Observation(Phase.ABSENT, 5), LIMITS, 5)
    assert absent.machine is not None
    assert absent.machine.stage is MachineStage.PLANNED
    wished = accept(absent, wish(Verb.STOP, 2), driver="fake", now_ms=6).instance
    assert wished is not None
    again = fold(wished, Observation(phase, 7, boot_id="b1" if phase is Phase.RUNNING else None), LIMITS, 7)
    assert next_step(again, 7) is step
    assert again.machine is not None
    assert again.machine.stage is MachineStage.CREATED
    never = instance(machine=machine(stage=MachineStage.PLANNED, power=Power.OFF))
    assert fold(never, Observation(phase, 7), LIMITS, 7) == never


def test_backoff_doubles_and_is_bounded() -> None:
    assert [LIMITS.backoff_ms(number) for number in (0, 1, 2, 3, 50)] == [0, 1_000, 2_000, 4_000, 300_000]


def test_every_state_has_a_way_out() -> None:
    late = instance(deadline_ms=10, status=InstanceStatus.STARTING)
    assert overdue_reason(late, LIMITS, 9) is None
    assert overdue_reason(late, LIMITS, 10) == (Reason.START_DEADLINE, "it was not ready in time")
    unseen = late.evolve(machine=machine(power=Power.UNKNOWN))
    assert overdue_reason(unseen, LIMITS, 10) == (Reason.MACHINE_UNKNOWN, "the driver cannot see it")
    named = late.evolve(reason="no_free_port", message="no port")
    assert overdue_reason(named, LIMITS, 10) == ("no_free_port", "no port")
    crashed = instance(attempts=LIMITS.max_attempts + 1, reason=Reason.MACHINE_LOST, message="ended")
    assert overdue_reason(crashed, LIMITS, 0) == (Reason.CRASH_LOOP, "ended")
    stuck = instance(desired=DesiredState.DELETED, status=InstanceStatus.DELETING, deadline_ms=10)
    assert (overdue_reason(stuck, LIMITS, 11) or ("", ""))[0] == Reason.DELETE_OVERDUE


def test_a_machine_that_nobody_sees_is_an_error_at_the_deadline_of_degraded() -> None:
    unseen = instance(
        machine=machine(power=Power.UNKNOWN), ready=True, degraded=True, status=InstanceStatus.DEGRADED, deadline_ms=10,
        reason=Reason.MACHINE_UNKNOWN, message="no answer",
    )  # fmt: skip
    assert overdue_reason(unseen, LIMITS, 9) is None
    assert overdue_reason(unseen, LIMITS, 10) == (Reason.MACHINE_UNKNOWN, "no answer")


def test_every_reason_has_a_remedy_and_says_it_once() -> None:
    for reason in Reason:
        assert "remedy:" in explained(reason)
    assert explained("x", explained("x", "it broke")).count("remedy:") == 1


def test_metering_counts_what_was_seen_and_lists_long_gaps() -> None:
    boot = metering.Boot("b", "ins_1", "mch_1", "tenant-a", "standard", last_observed_ms=0)
    boot = metering.observed(boot, 60_000)
    boot = metering.observed(boot, 180_000)  # exactly two minutes still count
    assert (boot.seconds_total, boot.gap_seconds) == (180, 0)
    boot = metering.observed(boot, 180_000 + 120_001)
    assert (boot.seconds_total, boot.gap_seconds) == (180, 120)
    assert metering.observed(boot, 100) == boot
    assert metering.observed(metering.ended(boot), 10**9).seconds_total == 180
    again = metering.observed(metering.ended(boot), 180_000 + 130_001)
    assert (again.seconds_total, again.final) == (190, False), "a boot that is seen again had not ended"
