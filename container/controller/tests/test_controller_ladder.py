"""The health ladder and the back-off, as pure steps in time."""

import pytest
from hatchery_controller.domain.ladder import Ladder, Limits, Moment, Phase, Probe, Reason, backoff

UP = Probe(live=True, ready=True)
HALF = Probe(live=True, ready=False, detail="/ready: status 503")
DOWN = Probe(live=False, ready=False, detail="/health: refused")
LIMITS = Limits()


def at(seconds):
    return Moment(1_000_000 + int(seconds * 1000), float(seconds))


def running(*, ready_at=None):
    ladder = Ladder(LIMITS, at(0))
    ladder.configured(at(1))
    ladder.spawned(42, at(1))
    if ready_at is not None:
        ladder.probed(UP, at(ready_at))
    return ladder


def test_the_way_up():
    ladder = Ladder(LIMITS, at(0))
    phases, revisions = [ladder.state.phase], [ladder.state.revision]
    for step in (
        lambda: ladder.configured(at(1)),
        lambda: ladder.spawned(42, at(1)),
        lambda: ladder.probed(DOWN, at(2)),
        lambda: ladder.probed(HALF, at(3)),
        lambda: ladder.probed(UP, at(4)),
    ):
        step()
        phases.append(ladder.state.phase)
        revisions.append(ladder.state.revision)
    assert phases == [Phase.BOOTING, *[Phase.CONFIGURED] * 3, Phase.LIVE, Phase.READY]
    assert revisions == sorted(revisions)
    assert ladder.state.since == at(4).wall_ms
    assert ladder.state.gateway.pid == 42


def test_same_answer_same_revision():
    ladder = running(ready_at=2)
    revision = ladder.state.revision
    ladder.probed(UP, at(100))
    assert ladder.state.revision == revision


def test_revisions_grow_when_the_clock_goes_back():
    ladder = running()
    revision = ladder.state.revision
    ladder.probed(UP, Moment(5, 2))
    assert ladder.state.revision > revision


def test_one_miss_is_no_fall_three_are():
    ladder = running(ready_at=2)
    for second, expected in ((3, Phase.READY), (4, Phase.READY), (5, Phase.DEGRADED)):
        ladder.probed(HALF, at(second))
        assert ladder.state.phase is expected
    assert ladder.state.reason == Reason.NOT_READY
    ladder.probed(DOWN, at(6))
    assert ladder.state.reason == Reason.UNRESPONSIVE
    ladder.probed(UP, at(7))
    assert (ladder.state.phase, ladder.state.reason, ladder.state.message) == (Phase.READY, None, "")


def test_misses_must_be_in_a_row():
    ladder = running(ready_at=2)
    for probe in (DOWN, DOWN, UP, DOWN, DOWN):
        ladder.probed(probe, at(3))
    assert ladder.state.phase is Phase.READY


def test_deadlines():
    ladder = running()
    assert ladder.overdue(at(180)) is None
    assert ladder.overdue(at(182)) is Reason.NEVER_LIVE
    ladder.probed(HALF, at(100))
    assert ladder.overdue(at(280)) is None
    assert ladder.overdue(at(281)) is Reason.NEVER_READY
    ladder.probed(UP, at(200))
    assert ladder.overdue(at(10_000)) is None


def test_a_silent_gateway_is_overdue_a_talking_one_is_not():
    ladder = running(ready_at=2)
    for second in (10, 11, 12):
        ladder.probed(DOWN, at(second))
    assert ladder.overdue(at(180)) is None
    assert ladder.overdue(at(183)) is Reason.UNRESPONSIVE
    ladder.probed(HALF, at(183))
    assert ladder.overdue(at(300)) is None


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (10_000, 300)]
)
def test_backoff_doubles_up_to_five_minutes(failures, seconds):
    assert backoff(failures, LIMITS) == seconds


def test_crash_then_crash_loop():
    ladder = running()
    waits = []
    for second in range(2, 6):
        waits.append(ladder.exited(1, "boom", at(second)))
        reason = ladder.state.reason
        ladder.configured(at(second))
        ladder.spawned(50 + second, at(second))
        assert (ladder.state.phase, ladder.state.reason) == (Phase.CONFIGURED, reason)
    assert waits == [1, 2, 4, 8]
    assert reason == Reason.CRASH_LOOP
    assert ladder.state.message == "the gateway ended with status 1: boom"
    assert ladder.state.gateway.restarts == 4


def test_thirty_healthy_seconds_forget_earlier_failures():
    ladder = running()
    for second in (2, 3, 4):
        ladder.exited(1, "", at(second))
        ladder.spawned(50, at(second))
    ladder.probed(UP, at(10))
    assert ladder.exited(1, "", at(39)) == 8
    ladder.spawned(51, at(40))
    ladder.probed(UP, at(50))
    assert ladder.exited(-9, "", at(80)) == 1
    assert ladder.state.message == "the gateway was killed by signal 9"


def test_a_crash_is_told_in_one_short_line():
    ladder = running()
    log = "\n".join(["2026-11-20 [gateway] a record", "x" * 900, "Error: " + "no " * 300, "    at start (a.js:1:2)"])
    ladder.exited(1, log, at(2))
    assert ladder.state.message.startswith("the gateway ended with status 1: Error: no no")
    assert "\n" not in ladder.state.message
    assert len(ladder.state.message) == len("the gateway ended with status 1: ") + 200


def test_exit_78_is_final_and_carries_the_gateways_text():
    ladder = running()
    assert ladder.exited(78, "Invalid config: unknown key colour", at(2)) is None
    assert ladder.state.phase is Phase.FAILED
    assert ladder.state.reason == Reason.CONFIG_REJECTED
    assert ladder.state.message == "Invalid config: unknown key colour"
    assert ladder.state.gateway.exit_code == 78
    ladder.probed(UP, at(3))
    assert ladder.state.phase is Phase.FAILED


def test_a_wished_restart_forgets_failures():
    ladder = running()
    ladder.exited(1, "", at(2))
    ladder.exited(1, "", at(3))
    ladder.restarting("", at(4))
    assert (ladder.state.phase, ladder.state.reason) == (Phase.CONFIGURED, Reason.RESTART)
    ladder.spawned(60, at(4))
    ladder.probed(UP, at(5))
    assert ladder.state.reason is None
    assert ladder.exited(1, "", at(6)) == 1


def test_late_answers_do_not_undo_a_stop():
    ladder = running(ready_at=2)
    ladder.stopping(at(3))
    ladder.probed(UP, at(4))
    ladder.exited(78, "late", at(4))
    ladder.configured(at(4))
    assert (ladder.state.phase, ladder.state.reason) == (Phase.STOPPING, None)
    ladder.stopped(at(5))
    ladder.probed(UP, at(6))
    assert ladder.state.phase is Phase.STOPPED


def test_messages_are_bounded():
    ladder = running()
    ladder.exited(78, "x" * 10_000, at(2))
    assert len(ladder.state.message) == 2000
