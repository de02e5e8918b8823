"""Fakes over the agent's ports: a log, rows, an OpenClaw behind the proxy; each can die at any step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hatchery_agent.domain.decisions import Usage
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.domain.folding import RunState
from hatchery_agent.domain.recovery import History
from hatchery_agent.ports import (
    Accepted,
    Checkpoint,
    Delta,
    Final,
    GatewayNotReady,
    Held,
    Lease,
    Progress,
    RunRow,
    Session,
    Steered,
    TurnError,
    TurnEvent,
)
from hatchery_common.bus import LogEntry, SequenceConflict
from hatchery_common.contracts.threads import ThreadEntry
from hatchery_common.errors import NotFound

TENANT, THREAD, INSTANCE = "tenant-a", "thd_1", "ins_1"


class Crash(BaseException):
    """The process is gone: nothing of it does anything any more."""


@dataclass
class Fate:
    """Counts the steps at which a process touches the outside; dies at the chosen one and stays dead."""

    die_at: int | None = None
    steps: int = 0
    dead: bool = False
    names: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        if self.dead:
            raise Crash(name)
        self.steps += 1
        self.names.append(name)
        if self.steps == self.die_at:
            self.dead = True
            raise Crash(name)

    def restart(self) -> None:
        self.dead, self.die_at = False, None


@dataclass
class FakeLog:
    """A thread log with expected-last; `lose_answer` raises after the effect, as a broken connection would."""

    fate: Fate
    items: list[LogEntry] = field(default_factory=list)
    next_sequence: int = 7
    lose_answer: int = 0

    async def append(self, tenant: str, thread_id: str, entries: Sequence[ThreadEntry], *, expected_last: int) -> int:
        self.fate.step("append")
        last = self.items[-1].sequence if self.items else 0
        if last != expected_last:
            raise SequenceConflict("the log has moved on")
        for entry in entries:
            self.items.append(LogEntry(self.next_sequence, entry))
            self.next_sequence += 1
        self.fate.step("appended")
        if self.lose_answer:
            self.lose_answer -= 1
            raise SequenceConflict("stored, but the answer was lost and the repetition conflicts")
        return self.items[-1].sequence

    async def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry]:
        self.fate.step("read")
        for item in list(self.items):
            if item.sequence > after:
                yield item

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        return (self.items[0].sequence, self.items[-1].sequence) if self.items else (0, 0)


@dataclass
class FakeRows:
    """Leases, Runs, Parking and Housekeeping in memory."""

    fate: Fate
    runs: dict[str, RunRow] = field(default_factory=dict)
    fence: int = 0
    holder: str | None = None
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    due_at: dict[str, float] = field(default_factory=dict)  # of parked runs, by time.monotonic()

    def submit(self, run_id: str, text: str | None) -> None:
        key = f"agent:main:hatch:{THREAD}"
        row = RunRow(TENANT, THREAD, run_id, INSTANCE, key, f"msg-{run_id}", text, False, 0)
        self.runs[run_id] = replace(row, touched_at=datetime.now(UTC))

    async def take(self, tenant: str, thread_id: str, holder: str) -> Lease | Held:
        self.fate.step("take")
        if self.holder is not None:
            return Held(0.01)
        self.fence, self.holder = self.fence + 1, holder
        self.fate.step("taken")
        return Lease(tenant, thread_id, holder, self.fence)

    async def renew(self, lease: Lease) -> bool:
        return lease.fence == self.fence

    async def release(self, lease: Lease) -> None:
        self.fate.step("release")
        if lease.fence == self.fence:
            self.holder = None

    async def load(self, tenant: str, run_id: str) -> RunRow:
        self.fate.step("load")
        row = self.runs.get(run_id)
        if row is None or row.tenant != tenant:
            raise NotFound("no such run")
        point = self.checkpoints.get(run_id)
        due_at = self.due_at.get(run_id)
        due = due_at is not None and due_at <= time.monotonic()
        return replace(row, accepted=bool(point and point.accepted), parked=due_at is not None, due=due)

    async def queued(self, run_id: str) -> None:
        self.fate.step("queued")
        self.runs[run_id] = replace(self.runs[run_id], text=None, touched_at=datetime.now(UTC))

    async def started(self, row: RunRow, lease: Lease, attempt: int, *, cause: Any) -> None:
        self._check(lease)
        self.fate.step("started")
        self.runs[row.run_id] = replace(self.runs[row.run_id], touched_at=datetime.now(UTC))
        self.facts.append(f"started-{row.run_id}-{attempt}")

    async def checkpoint(self, run_id: str, lease: Lease, point: Checkpoint) -> None:
        self._check(lease)
        self.fate.step("checkpoint")
        self.checkpoints[run_id] = point

    async def settle(self, row: RunRow, lease: Lease, run: RunState, *, quiet: int | None, cause: Any) -> None:
        self.fate.step("settle")
        if not self.runs[row.run_id].ended:
            self.facts.append(f"{run.phase}-{row.run_id}")
        self.runs[row.run_id] = replace(self.runs[row.run_id], ended=True)
        self.due_at.pop(row.run_id, None)
        if quiet is not None and lease.fence == self.fence and all(row.ended for row in self.runs.values()):
            self.runs = {name: replace(row, quiet=quiet) for name, row in self.runs.items()}
        elif quiet is None:
            self.due_at = dict.fromkeys(self.due_at, 0.0)
        self.fate.step("settled")

    async def park(self, row: RunRow, lease: Lease, *, began_ms: int, look_s: float, cause: Any) -> None:
        self._check(lease)
        self.fate.step("park")
        stored = self._open(row)
        news = stored.woken_at != row.woken_at
        due_at = 0.0 if news else time.monotonic() + look_s
        self.due_at = dict.fromkeys([*self.due_at, row.run_id], due_at)
        kept = {"began_ms": stored.began_ms or began_ms, "cause": stored.cause or _kept(cause)}
        self.runs[row.run_id] = replace(stored, touched_at=datetime.now(UTC), **kept)
        self.fate.step("parked")

    async def park_behind(self, row: RunRow, lease: Lease, *, cause: Any) -> None:
        self._check(lease)
        self.fate.step("park_behind")
        stored = self._open(row)
        self.due_at[row.run_id] = min(self.due_at.values(), default=0.0)
        self.runs[row.run_id] = replace(stored, touched_at=datetime.now(UTC), cause=stored.cause or _kept(cause))

    async def wake(self, tenant: str, instance_id: str) -> bool:
        now = datetime.now(UTC)
        self.runs = {name: row if row.ended else replace(row, woken_at=now) for name, row in self.runs.items()}
        self.due_at = dict.fromkeys(self.due_at, 0.0)
        return bool(self.due_at)

    async def due(self, limit: int) -> Sequence[RunRow]:
        ready = [run_id for run_id in self.runs if self.due_at.get(run_id, float("inf")) <= time.monotonic()]
        return [await self.load(TENANT, run_id) for run_id in ready[:1]]

    async def next_due_s(self) -> float | None:
        left = [due_at - time.monotonic() for due_at in self.due_at.values()]
        return min((seconds for seconds in left if seconds > 0), default=None)

    async def postpone(self, thread_id: str, delay_s: float) -> None:
        self.due_at = dict.fromkeys(self.due_at, time.monotonic() + delay_s)

    async def find(self, run_id: str) -> RunRow | None:
        return await self.load(TENANT, run_id) if run_id in self.runs else None

    async def orphans(self, older_than_s: int) -> Sequence[RunRow]:
        return [row for row in self.runs.values() if row.text is not None and not row.ended]

    async def stale(self, older_than_s: int) -> Sequence[RunRow]:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        logged = [row for row in self.runs.values() if row.text is None and not row.ended]
        free = [row for row in logged if self.holder is None and row.run_id not in self.due_at]
        return [row for row in free if row.touched_at is not None and row.touched_at <= before]

    def _open(self, row: RunRow) -> RunRow:
        if self.runs[row.run_id].ended:
            raise LeaseLost("ended")
        return self.runs[row.run_id]

    def _check(self, lease: Lease) -> None:
        if lease.fence != self.fence:
            raise LeaseLost("fence")


def _kept(cause: Any) -> Mapping[str, Any]:
    return {"id": cause.id, "correlation_id": cause.correlation_id, "traceparent": cause.traceparent}


@dataclass
class FakeRuntime:
    """OpenClaw behind the proxy: a key has one turn; it answers, or a restart interrupts it."""

    fate: Fate
    answer: Sequence[str] = ("Hello", " there", ".")
    turns: dict[str, str] = field(default_factory=dict)  # key → "answered" | "interrupted"
    received: list[str] = field(default_factory=list)
    states: list[GatewayNotReady] = field(default_factory=list)
    break_after: int | None = None  # deltas after which the next stream breaks
    restart_on_break: bool = False
    hang: bool = False
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    error: TurnError | None = None
    steered: bool = False
    aborted: list[str] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)  # what each look shows; the last one stays

    @asynccontextmanager
    async def send(self, session: Session, message: str, key: str) -> AsyncGenerator[AsyncGenerator[TurnEvent]]:
        self.fate.step("send")
        if self.states:
            raise self.states.pop(0)
        yield self._events(message, key)

    async def abort(self, session: Session, key: str) -> None:
        self.aborted.append(key)

    async def history(self, session: Session) -> History:
        self.fate.step("history")
        if len(self.histories) > 1:
            return self.histories.pop(0)
        return self.histories[0] if self.histories else History()

    async def _events(self, message: str, key: str) -> AsyncGenerator[TurnEvent]:
        if key not in self.turns:
            self.received.append(message)
            self.turns[key] = "answered"
        self.fate.step("accepted")
        yield Accepted()
        if self.turns[key] == "interrupted":
            yield TurnError("interrupted", "the gateway restarted")
            return
        if self.steered:
            yield Steered()
            return
        yield Progress("thinking")
        if self.hang:
            self.hanging.set()
            await asyncio.sleep(60)
        if self.error is not None:
            yield self.error
            return
        for number, text in enumerate(self.answer):
            if number == self.break_after:
                self.break_after = None
                if self.restart_on_break:
                    self.turns[key] = "interrupted"
                return
            yield Delta(text)
        self.fate.step("final")
        yield Final("".join(self.answer), Usage(12, 3))
