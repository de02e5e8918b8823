"""Seeded kills: whichever process dies at whichever step, nothing accepted is lost, nothing is done twice.

One walk of a user (provision, chat, stop, start, chat, restart, delete) is repeated; before each wish one failpoint is armed, the
process that reaches it dies by SIGKILL, the supervisor starts it again, and within 60 s the world must be right.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from visitor import Visitor
from whole_stack import TOPOLOGIES, WholeStack, eventually, whole_stack

CYCLES = 3  # seven kills each, in both topologies: 42
RECOVERY_S = 60.0
_API = ["api.before_commit", "api.after_commit", "api.before_publish", "api.after_publish", "api.after_intent_commit"]
_OUTBOX = [
    "provisioner.before_commit",
    "provisioner.after_commit",
    "provisioner.before_publish",
    "provisioner.after_publish",
]
_HANDLER = ["provisioner.after_intent_commit", "provisioner.before_ack"]
_START = ["provisioner.after_driver_create", "provisioner.after_driver_start"]
_BILLING = ["billing.before_commit", "billing.after_commit", "billing.before_publish", "billing.after_publish"]
_LEDGER = ["billing.batch_before_commit", "billing.after_commit_before_ack"]
_AGENT = [
    "agent.before_commit", "agent.after_commit", "agent.before_publish", "agent.after_publish", "agent.after_queue_append",
    "agent.mid_chat", "agent.before_end_append", "agent.after_end_append", "agent.before_ack",
]  # fmt: skip
_POST = ["api.after_post_key", "api.after_submit", "api.after_post_commit"]
_PROXY = ["runtime-proxy.after_usage_opened", "runtime-proxy.before_usage_recorded"]
POINTS: dict[str, list[str]] = {
    "provision": [*_API, *_OUTBOX, *_HANDLER, *_START],
    "chat": [*_AGENT, *_AGENT, *_POST, *_PROXY, *_LEDGER],
    "stop": [*_OUTBOX, *_HANDLER, "provisioner.after_stop_effect", *_LEDGER, *_BILLING],
    "start": [*_API, *_OUTBOX, *_HANDLER, *_START],
    "restart": [*_OUTBOX, *_HANDLER, *_START, "provisioner.after_stop_effect"],
    "delete": [
        *_API,
        *_HANDLER,
        "provisioner.after_stop_effect",
        "provisioner.mid_delete",
        "provisioner.after_delete_storage",
    ],
}
WALK = ("provision", "chat", "stop", "start", "chat", "restart", "delete")


class Walker:
    """One user who keeps asking, as a website would, whatever dies meanwhile."""

    def __init__(self, stack: WholeStack, user: str, seed: int) -> None:
        self.stack = stack
        self.site: Visitor = stack.visitor(user)
        self.random = random.Random(seed)
        self.fuse = stack.directory / "failpoint"
        self.used: Counter[str] = Counter()
        self.kills: list[dict[str, Any]] = []

    def insist(self, method: str, path: str, body: Any = None) -> Any:
        """Send until it is answered, with one Idempotency-Key, as often as connections break."""
        key = {"Idempotency-Key": f"key-{self.random.getrandbits(64):x}"}
        end = time.monotonic() + RECOVERY_S
        while True:
            try:
                answer = self.site.request(method, path, json=body, headers=key)
                if answer.status_code < 500:
                    assert answer.is_success, answer.text
                    return answer.json()["data"]
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, f"{method} {path} was not accepted within {RECOVERY_S:g} s"
            time.sleep(0.1)

    def arm(self, action: str) -> str:
        """Choose the least used point of this action by the seed."""
        fewest = min(self.used[point] for point in POINTS[action])
        point = self.random.choice([one for one in POINTS[action] if self.used[one] == fewest])
        self.used[point] += 1
        self.fuse.with_suffix(".spent").unlink(missing_ok=True)
        draft = self.fuse.with_suffix(".draft")
        draft.write_text(point)
        draft.rename(self.fuse)
        return point

    def act(self, action: str) -> None:
        """One wish with one kill, and what must be true afterwards."""
        point, began = self.arm(action), time.monotonic()
        if action == "chat":
            self._chat()
        else:
            self._wish(action)
        eventually(lambda: not self.fuse.exists(), 30)
        self._settle()
        self.kills.append({"action": action, "point": point, "recovered_s": round(time.monotonic() - began, 2)})
        self._one_machine_at_most(running=action != "stop" and action != "delete")

    def _wish(self, action: str) -> None:
        method = "DELETE" if action == "delete" else "POST"
        path = "/api/openclaw/instance" + ("" if action in ("provision", "delete") else f"/{action}")
        accepted = self.insist(method, path)
        operation = accepted["operation"]["operation_id"]
        ended = eventually(lambda: self._ended(operation), RECOVERY_S)
        assert ended["status"] == "finished", ended
        seen = eventually(lambda: self._events(f"/api/operations/{operation}/events"), RECOVERY_S)
        ends = [one for one in seen if one in ("finished", "failed", "superseded")]
        assert ends == ["finished"], f"an operation has one end, not {ends}"

    def _chat(self) -> None:
        thread = self.insist("POST", "/api/threads")["thread_id"]
        run = self.insist("POST", f"/api/threads/{thread}/messages", {"text": "are you there?"})["run_id"]
        end = eventually(lambda: self._run_end(thread, run), RECOVERY_S)
        assert end in ("run.finished", "run.failed")
        entries = eventually(lambda: self._log(thread), RECOVERY_S)
        kinds = Counter(kind for kind, of in entries if of == run)
        assert kinds["message.user"] == 1
        assert kinds["run.finished"] + kinds["run.failed"] == 1, "a run ends exactly once"
        assert kinds["message.assistant"] <= 1
        submitted = self.stack.sql("agent", "SELECT run_id FROM runs WHERE thread_id = $1", thread)
        assert [row["run_id"] for row in submitted] == [run], "the repeats are one message"

    def _ended(self, operation: str) -> Any:
        data = self._tried(f"/api/operations/{operation}")
        return data if data and data["status"] in ("finished", "failed", "superseded") else None

    def _run_end(self, thread: str, run: str) -> str | None:
        ends = [kind for kind, of in self._log(thread) or [] if of == run and kind in ("run.finished", "run.failed")]
        return ends[0] if ends else None

    def _log(self, thread: str) -> list[tuple[str, str | None]] | None:
        """The kinds of the log's entries up to now (the stream itself never ends: leave it at the first pause)."""
        found: list[tuple[str, str | None]] = []
        try:
            with self.site.client.stream(
                "GET", f"/api/threads/{thread}/events", timeout=httpx.Timeout(5, read=1.0)
            ) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        entry = json.loads(line[6:])
                        found.append((entry.get("type"), entry.get("run_id")))
        except httpx.TransportError:
            pass
        return found or None

    def _events(self, path: str) -> list[str] | None:
        try:
            return [seen.event for seen in self.site.follow(path, seconds=20)]
        except (httpx.TransportError, AssertionError):
            return None

    def _tried(self, path: str) -> Any:
        try:
            answer = self.site.request("GET", path)
        except httpx.TransportError:
            return None
        return answer.json()["data"] if answer.is_success else None

    def _settle(self) -> None:
        """Every part is up again."""
        eventually(lambda: self.stack.status()["phase"] == "ready", RECOVERY_S, every=0.3)

    def _one_machine_at_most(self, *, running: bool) -> None:
        wanted = 1 if running else 0
        eventually(lambda: len(self.controllers()) == wanted, 30)

    def controllers(self) -> list[int]:
        """Controllers of this stack that live."""
        marks = ("hatchery_controller", str(self.stack.machines))
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if all(mark in " ".join(process.info["cmdline"] or []) for mark in marks)
        ]


def _report(topology: str, kills: list[dict[str, Any]]) -> None:
    times = sorted(kill["recovered_s"] for kill in kills)
    text = {"topology": topology, "kills": len(kills), "median_s": times[len(times) // 2], "worst_s": times[-1]}
    print(json.dumps(text))
    if place := os.environ.get("HATCHERY_KILL_REPORT"):
        (Path(place) / f"kills-{topology}.json").write_text(json.dumps({**text, "each": kills}, indent=1))


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_is_lost_or_doubled_whichever_process_dies(topology: str) -> None:
    seed = int(os.environ.get("HATCHERY_KILL_SEED", "20261120"))
    with whole_stack(topology) as stack:
        stack.environment["HATCHERY_FAILPOINTS_FILE"] = str(stack.directory / "failpoint")
        stack.up()
        walker = Walker(stack, "chaos@example.com", seed + len(topology))
        for _ in range(int(os.environ.get("HATCHERY_KILL_CYCLES", CYCLES))):
            for action in WALK:
                walker.act(action)
        _report(topology, walker.kills)
        assert len(walker.kills) >= 7
        verified = stack.json("billing", "verify")
        assert verified["ok"], verified
        assert list(stack.machines.glob("ins_*")) == []
        assert walker.controllers() == []
