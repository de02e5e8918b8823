"""The agent killed, frozen and restarted, its gateway too: one answer per message."""

from __future__ import annotations

import signal

import pytest
from agent_stage import ANSWER, Surroundings, T, fake_command, kinds, real_command
from hatchery_common.bus import LogEntry
from hatchery_common.contracts.threads import RUN_ENDS

POINTS = [
    "agent.after_queue_append",
    "agent.mid_chat",
    "agent.mid_chat:5",
    "agent.before_end_append",
    "agent.after_end_append",
    "agent.before_ack",
]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_worker_killed_at_any_point_leaves_one_answer(around: Surroundings, point: str):
    doomed = await around.agent(point)
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    assert await doomed.exit_code() == -signal.SIGKILL
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    facts = await around.settled("run_00000001")
    log = await around.log(thread)
    assert len(kinds(log, T.RUN_FINISHED)) == 1, [str(item.entry.type) for item in log]
    assert kinds(log, T.RUN_FAILED) == []
    assert len(kinds(log, T.MESSAGE_USER)) == len(kinds(log, T.MESSAGE_ASSISTANT)) == 1
    assert [item.entry.data["text"] for item in log if item.entry.type is T.MESSAGE_ASSISTANT] == [ANSWER]
    assert facts.count("run_00000001-end") == 1
    assert len(around.model.requests) == 1, "OpenClaw was asked once"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_frozen_worker_that_comes_back_writes_nothing_more(around: Surroundings):
    frozen = await around.agent()
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    await around.until(thread, frozenset({T.TEXT_DELTA}), 2)
    frozen.signal(signal.SIGSTOP)
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    before = await around.log(thread)
    frozen.signal(signal.SIGCONT)
    await around.post(thread, "run_00000002")
    await around.until(thread, frozenset(RUN_ENDS), 2)
    log = await around.log(thread)
    first = [item for item in log if item.entry.run_id == "run_00000001"]
    assert first == [item for item in before if item.entry.run_id == "run_00000001"]
    attempts = [item.entry.attempt for item in first if item.entry.attempt]
    assert attempts == sorted(attempts), "nothing of attempt 1 follows attempt 2"
    assert len(kinds(log, T.RUN_FINISHED)) == 2


async def killed_during_an_answer(around: Surroundings, *, model_status: int = 200) -> list[LogEntry]:
    """Kill the gateway in the middle of an answer, start it again, then send a second message; the log of it all.

    `model_status` is what the model answers until the first run has ended.
    """
    await around.agent()
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    await around.until(thread, frozenset({T.TEXT_DELTA}), 2)
    await around.gateway.kill()
    around.model.status = model_status
    await around.gateway.start()
    await around.until(thread, frozenset(RUN_ENDS))
    around.model.status = 200
    await around.post(thread, "run_00000002")
    await around.until(thread, frozenset(RUN_ENDS), 2)
    return await around.log(thread)


def answers(log: list[LogEntry]) -> list[tuple[str | None, str]]:
    return [(i.entry.run_id, i.entry.data["text"]) for i in log if i.entry.type is T.MESSAGE_ASSISTANT]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_turn_that_a_killed_gateway_cannot_resume_ends_as_interrupted(around: Surroundings):
    log = await killed_during_an_answer(around, model_status=400)
    end = next(item.entry for item in log if item.entry.type in RUN_ENDS)
    assert (end.type, end.data["code"], end.data["retryable"]) == (T.RUN_FAILED, "interrupted", True), end.data
    assert answers(log) == [("run_00000002", ANSWER)]


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [pytest.param(fake_command, id="fake"), pytest.param(real_command, id="real", marks=pytest.mark.real)],
    indirect=True,
)
async def test_a_turn_that_a_killed_gateway_resumes_by_itself_ends_with_that_answer(around: Surroundings):
    around.patience_s = 150
    log = await killed_during_an_answer(around)
    assert answers(log) == [("run_00000001", ANSWER), ("run_00000002", ANSWER)]
    assert kinds(log, T.RUN_FAILED) == []
