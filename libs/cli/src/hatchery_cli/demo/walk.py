"""The walk of the demo, step by step, with the time of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hatchery_common.sse import ServerEvent

from hatchery_cli.demo.website import DemoFailed, Website

READY_S = 240.0
TURN_S = 180.0
Tell = Callable[[str], None]


@dataclass
class Walk:
    """What happened: figures in milliseconds, the answer, the operation's events in order, the ledger."""

    timings_ms: dict[str, int] = field(default_factory=dict[str, int])
    text: str = ""
    chunks: int = 0
    events: list[str] = field(default_factory=list[str])
    ledger: dict[str, int] = field(default_factory=dict[str, int])
    history_seen: bool = False
    sessions: int = 0


class Walker:
    """Provisions, chats, stops, starts, chats again, reads the ledger, deletes."""

    def __init__(self, site: Website, tell: Tell, before_delete: Callable[[], None]) -> None:
        self.walk = Walk()
        self._site = site
        self._tell = tell
        self._before_delete = before_delete

    def run(self) -> Walk:
        """The whole walk; raises DemoFailed at the first thing that is not as promised."""
        self._provision()
        thread = self._site.post("/api/threads", {"title": "demo"})["thread_id"]
        self._tell(f"thread {thread}")
        last = self._chat(thread, "Hello, are you really there?", "first_token", None)
        self._read_sessions(thread)
        self._stop_and_start()
        self._chat(thread, "And do you still know what I asked before?", "second_turn_first_token", last)
        self._read_sessions(thread, wanted_turns=2)
        self._read_ledger()
        self._delete()
        return self.walk

    def _provision(self) -> None:
        began = time.monotonic()
        instance = self._site.post("/api/openclaw/instance")
        self.walk.timings_ms["accepted"] = _ms(began)
        self._tell(f"accepted {instance['instance_id']} in {self.walk.timings_ms['accepted']} ms")
        self._until_finished(instance["operation"]["operation_id"], READY_S)
        self.walk.timings_ms["ready"] = _ms(began)
        status = self._site.get("/api/openclaw/instance")["status"]
        if status != "ready":
            raise DemoFailed(f"the operation is finished, but the instance is {status}")
        self._tell(f"ready after {self.walk.timings_ms['ready'] / 1000:.1f} s")

    def _until_finished(self, operation_id: str, deadline_s: float) -> None:
        last: ServerEvent | None = None
        for last in self._site.follow(f"/api/operations/{operation_id}/events", deadline_s):
            line = _line(last)
            self.walk.events.append(line)
            self._tell(f"  {line}")
        if last is None or last.event != "finished":
            raise DemoFailed(
                f"the operation ended with {last.event if last else 'nothing'}: {last.data if last else ''}"
            )

    def _chat(self, thread: str, text: str, timing: str, after: str | None) -> str | None:
        """Post a message and read its answer from the thread's log; returns the id of the last event."""
        began = time.monotonic()
        run_id = self._site.post(f"/api/threads/{thread}/messages", {"text": text})["run_id"]
        self._tell(f"you: {text}")
        answer, chunks, last_id = "", 0, after
        for one in self._site.follow(f"/api/threads/{thread}/events", TURN_S, after):
            last_id = one.id or last_id
            entry: dict[str, Any] = one.data if isinstance(one.data, dict) else {}
            if entry.get("run_id") != run_id:
                continue
            data = entry.get("data") or {}
            if one.event == "text.delta":
                if not chunks:
                    self.walk.timings_ms[timing] = _ms(began)
                answer, chunks = answer + data["text"], chunks + 1
            elif one.event == "run.failed":
                raise DemoFailed(f"the run failed: {data.get('code')}: {data.get('message')}")
            elif one.event == "run.finished":
                break
        if not answer:
            raise DemoFailed("the run finished without any text")
        self.walk.text, self.walk.chunks = self.walk.text or answer, self.walk.chunks or chunks
        self._tell(f"gateway: {answer}")
        return last_id

    def _read_sessions(self, thread: str, wanted_turns: int = 1) -> None:
        sessions = self._site.get("/api/openclaw/sessions")
        listed = sessions.get("sessions", []) if isinstance(sessions, dict) else sessions
        self.walk.sessions = len(listed)
        key = self._site.get(f"/api/threads/{thread}")["session_key"]
        history = self._site.get(f"/api/openclaw/sessions/{key}/history")
        messages = history.get("messages", []) if isinstance(history, dict) else history
        turns = sum(1 for message in messages if message.get("role") == "user")
        self._tell(f"{len(listed)} sessions; {key} holds {len(messages)} messages, {turns} of them yours")
        if turns < wanted_turns:
            raise DemoFailed(f"the session's history holds {turns} of your messages, expected {wanted_turns}")
        self.walk.history_seen = turns >= 2

    def _stop_and_start(self) -> None:
        stopping = self._site.post("/api/openclaw/instance/stop")
        self._until_finished(stopping["operation"]["operation_id"], 120)
        status = self._site.get("/api/openclaw/instance")["status"]
        if status != "stopped":
            raise DemoFailed(f"the instance was to be stopped and is {status}")
        self._tell("stopped")
        began = time.monotonic()
        starting = self._site.post("/api/openclaw/instance/start")
        self._until_finished(starting["operation"]["operation_id"], READY_S)
        self.walk.timings_ms["restart_ready"] = _ms(began)
        self._tell(f"ready again after {self.walk.timings_ms['restart_ready'] / 1000:.1f} s")

    def _read_ledger(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            summary = self._site.get("/api/openclaw/billing/summary")
            seen = {line["kind"] for line in summary["lines"]}
            if {"grant", "machine_time"} <= seen or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self.walk.ledger = {"balance_micro": summary["balance_micro"], "txns": summary["transactions"]}
        self._tell(f"ledger: {summary['balance_micro'] / 1e6:.6f} USD left, {summary['transactions']} transactions")
        if not {"grant", "machine_time"} <= seen:
            raise DemoFailed(f"the ledger shows {sorted(seen)}, expected a grant and machine time")

    def _delete(self) -> None:
        self._before_delete()
        began = time.monotonic()
        deleting = self._site.delete("/api/openclaw/instance")
        self._until_finished(deleting["operation"]["operation_id"], 120)
        self.walk.timings_ms["delete"] = _ms(began)
        if self._site.get("/api/openclaw/instance") is not None:
            raise DemoFailed("the instance is deleted and is still shown")
        self._tell(f"deleted in {self.walk.timings_ms['delete'] / 1000:.1f} s")


def _line(event: ServerEvent) -> str:
    """An event of an operation with what it is about: `step_finished wait_ready`, `status starting`."""
    progress = event.data if isinstance(event.data, dict) else {}
    detail = progress.get("data") or {}
    return f"{event.event} {detail.get('step') or detail.get('status') or detail.get('kind') or ''}".rstrip()


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
