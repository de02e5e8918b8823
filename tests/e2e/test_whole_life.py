"""One instance from nothing to nothing, over HTTP, in both topologies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hatchery_cli.demo.leftovers import lock_files, lock_names
from hatchery_common.sse import ServerEvent
from visitor import Visitor, refusal, until
from whole_stack import WholeStack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def ids(entries: list[ServerEvent]) -> list[str]:
    return [one.id for one in entries if one.id is not None]


def texts(ann: Visitor, thread_id: str) -> list[str]:
    return [message["text"] for message in ann.history(thread_id)]


def interrupted_turn(ann: Visitor, text: str) -> str:
    """Chat, leave after the first words, take the stream up by Last-Event-ID: nothing is missing, nothing comes twice."""
    stream = ann.follow("/api/openclaw/chat", method="POST", body={"message": text})
    begun = until(stream, lambda seen: seen.event == "text.delta")
    stream.close()
    where = begun[0].data
    rest = ann.read_turn(where["thread_id"], where["run_id"], after=begun[-1].id)
    whole = ann.read_turn(where["thread_id"], where["run_id"])
    assert rest.end.event == "run.finished"
    assert [*ids(begun), *ids(rest.events)] == ids(whole.events)
    assert text in whole.text
    return where["thread_id"]


def test_an_instance_lives_its_whole_life(stack: WholeStack, user: Callable[[], str]) -> None:
    ann = stack.visitor(user())

    accepted = ann.wish("provision")
    born = ann.instance()
    assert born["status"] == "ready"
    assert born["instance_id"] == accepted["instance_id"]
    assert stack.controller_pid(born["instance_id"]) > 0

    thread = interrupted_turn(ann, "the first words")
    told = texts(ann, thread)
    assert told[0] == "the first words"
    assert len(told) == 2
    assert len(ann.get("/api/openclaw/sessions")["sessions"]) == 1

    ann.wish("stop")
    assert ann.instance()["status"] == "stopped"
    unheard = ann.say(thread, "is anybody there?")
    assert unheard.end.event == "run.failed"
    assert unheard.end.data["data"]["code"] == "instance_not_running"
    refusal(ann.request("GET", "/api/openclaw/sessions"), 409, "instance_not_running")

    ann.wish("start")
    assert texts(ann, thread) == told
    second = ann.say(thread, "the second words", after=unheard.last_id)
    assert second.end.event == "run.finished"
    assert "the second words" in second.text
    assert "the first words" in second.text, "the model was not told what was said before"

    ann.wish("restart")
    renewed = ann.instance()
    assert renewed["machine_id"] != born["machine_id"]
    assert texts(ann, thread)[:2] == told
    assert len(texts(ann, thread)) == 4

    leave_nothing(stack, ann, born["instance_id"])


def leave_nothing(stack: WholeStack, ann: Visitor, instance_id: str) -> None:
    """Delete, then look for what could be left: directory, processes, lock files, holes in the ledger."""
    kinds = {"grant", "machine_time", "model_usage"}
    eventually(lambda: kinds <= {line["kind"] for line in ann.get("/api/openclaw/billing/summary")["lines"]})
    root = stack.root_of(instance_id)
    locks = {name for name in lock_names(stack.machines) if lock_files({name})}
    assert locks

    ann.wish("delete")

    assert ann.instance() is None
    assert not root.exists()
    assert [line for line in stack.processes() if instance_id in line] == []
    assert lock_files(locks - lock_names(stack.machines)) == []
    assert stack.json("billing", "verify")["ok"]
    rebuilt = eventually(lambda: (found := stack.json("billing", "rebuild"))["ok"] and found)
    assert rebuilt["replayed"] > 0
