"""Crashes, ends and new beginnings of a whole stack, in both topologies."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from whole_stack import WholeStack, eventually, is_alive, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_ENDS_WITHIN_S = 30


def test_killed_processes_are_restarted_and_shown(stack: WholeStack, user: Callable[[], str]) -> None:
    ann = stack.visitor(user())
    instance_id = ann.wish("provision")["instance_id"]
    controller = stack.controller_pid(instance_id)
    before = stack.state["parts"]

    for part in stack.parts:
        kill(before[part]["pid"])

    def again(part: str) -> bool:
        now = stack.state["parts"][part]
        return now["restarts"] > before[part]["restarts"] and now["state"] == "ready"

    eventually(lambda: all(again(part) for part in stack.parts), 120)
    status = stack.status()
    assert status["phase"] == "ready"
    told = {event["part"] for event in stack.state["events"] if event["reason"] == "was killed by SIGKILL"}
    assert stack.parts <= told
    for part in stack.parts:
        assert status["parts"][part]["restarts"] >= 1
        assert status["parts"][part]["reason"]
        assert status["parts"][part]["pid"] != before[part]["pid"]
    assert stack.controller_pid(instance_id) == controller, "a machine must survive its control plane"
    eventually(lambda: ann.instance()["status"] == "ready")
    assert ann.say(ann.thread()["thread_id"], "still there?").end.event == "run.finished"
    ann.wish("delete")


def test_an_end_forgets_nothing(stack: WholeStack, user: Callable[[], str]) -> None:
    ann = stack.visitor(user())
    running = ann.wish("provision")["instance_id"]
    ann.wish("provision", name="spare")
    ann.wish("stop", name="spare")
    thread = ann.thread(title="kept")["thread_id"]
    said = ann.say(thread, "remember this")
    controller, machine = stack.controller_pid(running), ann.instance()["machine_id"]

    kill(stack.state["pid"])  # `up` dies hard: its services and machines go on without it
    eventually(lambda: not is_alive(stack.state["pid"]))
    stack.up()
    eventually(lambda: ann.instance()["status"] == "ready")
    assert stack.controller_pid(running) == controller, "a living machine is adopted, not replaced"
    assert ann.instance()["machine_id"] == machine

    end_by(stack, signal.SIGINT)
    assert not is_alive(controller)

    stack.up()
    eventually(lambda: ann.instance()["status"] == "ready")
    assert ann.instance()["desired"] == "running"
    assert stack.controller_pid(running) != controller
    spare = ann.instance(name="spare")
    assert (spare["desired"], spare["status"]) == ("stopped", "stopped")
    assert ann.read_turn(thread, said.events[0].data["run_id"]).events == said.events
    assert ann.history(thread)[0]["text"] == "remember this"
    for name in ("default", "spare"):
        ann.wish("delete", name=name)
    assert stack.json("billing", "verify")["ok"]


def end_by(stack: WholeStack, how: signal.Signals) -> None:
    """A signal to `up` ends everything of this directory in time."""
    up = stack.state["pid"]
    began = time.monotonic()
    kill(up, how)
    eventually(lambda: not is_alive(up), 90)
    took = time.monotonic() - began
    assert took < _ENDS_WITHIN_S
    assert stack.state["phase"] == "stopped"
    assert stack.processes() == []


def test_a_termination_ends_everything_in_time(stack: WholeStack, user: Callable[[], str]) -> None:
    ann = stack.visitor(user())
    ann.wish("provision")
    end_by(stack, signal.SIGTERM)
    stack.up()
    eventually(lambda: ann.instance()["status"] == "ready")
    ann.wish("delete")
