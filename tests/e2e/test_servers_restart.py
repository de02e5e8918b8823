"""nats-server and Postgres die under load: everything recovers, and no process of ours is restarted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from visitor import Turn, Visitor
from whole_stack import WholeStack, eventually, kill, whole_stack

USERS = 3


def talk(stack: WholeStack, user: str, stop: threading.Event) -> list[Turn]:
    """One user who keeps posting messages until told to stop."""
    site, turns = stack.visitor(user), []
    thread = site.thread()["thread_id"]
    while not stop.is_set():
        answer = site.request("POST", f"/api/threads/{thread}/messages", json={"text": f"message {len(turns)}"})
        if answer.is_success:
            turns.append(read(site, thread, answer.json()["data"]["run_id"]))
        else:
            assert answer.status_code == 503, answer.text  # a typed refusal while a server is away
    return turns


def read(site: Visitor, thread: str, run_id: str) -> Turn:
    """The turn, reconnecting as a website does while the log cannot be read (a typed 503)."""
    end = time.monotonic() + 60
    while True:
        try:
            return site.read_turn(thread, run_id)
        except (AssertionError, httpx.TransportError) as error:
            refused = isinstance(error, httpx.TransportError) or str(error).startswith("503 ")
            if not refused or time.monotonic() > end:
                raise
        time.sleep(0.2)


def pid_of(stack: WholeStack, part: str) -> int:
    """The process that serves this part now."""
    return int(stack.status()["parts"][part]["pid"])


def said(stack: WholeStack) -> str:
    """What the stack says of itself, and the ends of its logs: why it is not ready."""
    return f"{stack.status()}\n{stack.log()}"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_servers_may_die_under_load() -> None:
    with whole_stack("one") as stack:
        stack.up()
        users = [f"load{number}@example.com" for number in range(USERS)]
        for user in users:
            stack.visitor(user).wish("provision")
        ours = pid_of(stack, "services")
        stop = threading.Event()
        with ThreadPoolExecutor(USERS) as pool:
            talking = [pool.submit(talk, stack, user, stop) for user in users]
            for part in ("nats", "postgres", "nats", "postgres"):
                before = pid_of(stack, part)
                kill(before)
                eventually(lambda part=part, before=before: restarted(stack, part, before), 60)
            stop.set()
            talked = [one.result(120) for one in talking]
        eventually(lambda: stack.status()["phase"] == "ready", 60, every=0.3, explain=lambda: said(stack))
        assert pid_of(stack, "services") == ours, "nothing of ours was restarted"
        assert all(turns for turns in talked)
        for turns in talked:
            for turn in turns:
                ends = [one.event for one in turn.events if one.event in ("run.finished", "run.failed")]
                assert len(ends) == 1
        for user in users:
            site = stack.visitor(user)
            assert site.say(site.thread()["thread_id"], "still there?").end.event == "run.finished"
            site.wish("delete")
        assert stack.json("billing", "verify")["ok"]
        assert stack.json("billing", "rebuild")["ok"]


def restarted(stack: WholeStack, part: str, before: int) -> bool:
    """Whether another process serves this part now."""
    found = stack.status()["parts"][part]
    return found["state"] == "ready" and found["pid"] not in (None, before)
