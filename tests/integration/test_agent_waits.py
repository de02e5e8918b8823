"""The agent killed while a run waits for its instance: the wait goes on, and there is one answer or one named end."""

from __future__ import annotations

import signal

import pytest
from agent_stage import ANSWER, AgentProcess, Surroundings, T, fake_command, kinds
from hatchery_common.contracts.routes import RouteState
from hatchery_common.contracts.threads import RUN_ENDS

RUN = "run_00000001"
FAKE = pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)


async def answered_once(around: Surroundings, thread) -> None:
    facts = await around.settled(RUN)
    log = await around.log(thread)
    shown = [str(item.entry.type) for item in log]
    assert len(kinds(log, T.RUN_FINISHED)) == 1, shown
    assert kinds(log, T.RUN_FAILED) == [], shown
    assert len(kinds(log, T.MESSAGE_USER)) == 1
    assert [item.entry.data["text"] for item in log if item.entry.type is T.MESSAGE_ASSISTANT] == [ANSWER]
    assert facts.count(f"{RUN}-end") == 1
    assert len(around.model.requests) == 1, "OpenClaw was asked once"


async def asked_of_a_starting_instance(around: Surroundings, failpoints: str = "") -> tuple[AgentProcess, str]:
    """An agent, to be killed later or at a failpoint, and the thread whose message it has to park."""
    await around.route(RouteState.STARTING)
    doomed = await around.agent(failpoints)
    thread = await around.thread()
    await around.post(thread, RUN)
    return doomed, thread


@pytest.mark.chaos
@pytest.mark.slow
@FAKE
async def test_an_agent_killed_while_a_run_is_parked_takes_it_up_again(around: Surroundings):
    doomed, thread = await asked_of_a_starting_instance(around)
    await around.until_parked()
    doomed.signal(signal.SIGKILL)
    await doomed.exit_code()
    await around.ready()  # while nobody listens
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    await answered_once(around, thread)
    assert kinds(await around.log(thread), T.RUN_STARTED) == [1], "it waited in one attempt"


@pytest.mark.chaos
@pytest.mark.slow
@FAKE
@pytest.mark.parametrize("point", ["agent.before_park", "agent.after_park", "agent.before_ack"])
async def test_a_death_while_parking_loses_nothing(around: Surroundings, point: str):
    doomed, thread = await asked_of_a_starting_instance(around, point)
    assert await doomed.exit_code() == -signal.SIGKILL
    await around.agent()
    await around.until_parked()
    await around.ready()
    await around.until(thread, frozenset(RUN_ENDS))
    await answered_once(around, thread)


@pytest.mark.chaos
@pytest.mark.slow
@FAKE
@pytest.mark.parametrize("point", ["agent.mid_chat", "agent.before_end_append", "agent.after_end_append"])
async def test_a_death_after_the_wait_leaves_one_answer_without_any_command(around: Surroundings, point: str):
    doomed, thread = await asked_of_a_starting_instance(around, point)
    await around.until_parked()
    await around.ready()
    assert await doomed.exit_code() == -signal.SIGKILL
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    await answered_once(around, thread)


@pytest.mark.chaos
@pytest.mark.slow
@FAKE
async def test_a_wait_that_ends_while_nobody_is_there_has_its_named_end(around: Surroundings):
    around.environment["HATCHERY_AGENT_START_DEADLINE_S"] = "4"
    doomed, thread = await asked_of_a_starting_instance(around)
    await around.until_parked()
    doomed.signal(signal.SIGKILL)
    await doomed.exit_code()
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    (end,) = [item.entry for item in await around.log(thread) if item.entry.type in RUN_ENDS]
    assert (end.type, end.data["code"]) == (T.RUN_FAILED, "instance_not_running")
