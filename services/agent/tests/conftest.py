"""Fakes over the agent's ports: a log, rows, an OpenClaw behind the proxy, and a world that can die at any step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hatchery_agent.domain.decisions import Usage
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.domain.folding import RunState, ThreadState, fold
from hatchery_agent.domain.recovery import History
from hatchery_agent.handlers.runs import RunTools, answer_message
from hatchery_agent.handlers.turns import TurnLimits
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
from hatchery_common.bus import Delivery, LogEntry, SequenceConflict
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import PostMessage, ThreadEntry
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
    """Leases and Runs in memory."""

    fate: Fate
    runs: dict[str, RunRow] = field(default_factory=dict)
    fence: int = 0
    holder: str | None = None
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)

    def submit(self, run_id: str, text: str | None) -> None:
        key = f"agent:main:hatch:{THREAD}"
        self.runs[run_id] = RunRow(TENANT, THREAD, run_id, INSTANCE, key, f"msg-{run_id}", text, False, 0)

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
        return replace(row, accepted=bool(point and point.accepted))

    async def queued(self, run_id: str) -> None:
        self.fate.step("queued")
        self.runs[run_id] = replace(self.runs[run_id], text=None)

    async def started(self, row: RunRow, lease: Lease, attempt: int, *, cause: Any) -> None:
        self._check(lease)
        self.fate.step("started")
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
        if quiet is not None and lease.fence == self.fence:
            self.runs = {name: replace(row, quiet=quiet) for name, row in self.runs.items()}
        self.fate.step("settled")

    def _check(self, lease: Lease) -> None:
        if lease.fence != self.fence:
            raise LeaseLost("fence")


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
    histories: list[History] = field(default_factory=list)  # what each look shows; the last one stays

    @asynccontextmanager
    async def send(self, session: Session, message: str, key: str) -> AsyncGenerator[AsyncGenerator[TurnEvent]]:
        self.fate.step("send")
        if self.states:
            raise self.states.pop(0)
        yield self._events(message, key)

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


@dataclass
class World:
    """One thread with its worker's surroundings."""

    fate: Fate = field(default_factory=Fate)
    limits: TurnLimits = field(default_factory=lambda: TurnLimits(turn_s=5, start_s=0.6, recovery_s=0))
    lease_s: float = 0.3
    max_attempts: int = 30

    def __post_init__(self) -> None:
        self.log = FakeLog(self.fate)
        self.rows = FakeRows(self.fate)
        self.runtime = FakeRuntime(self.fate)

    @property
    def tools(self) -> RunTools:
        return RunTools(
            log=self.log,
            leases=self.rows,
            runs=self.rows,
            runtime=self.runtime,
            clock=SystemClock(),
            slots=asyncio.Semaphore(4),
            limits=self.limits,
            lease_s=self.lease_s,
            max_attempts=self.max_attempts,
        )

    def delivery(self, run_id: str = "run_1") -> Delivery[PostMessage]:
        message = PostMessage(
            tenant=TENANT, thread_id=THREAD, run_id=run_id, instance_id=INSTANCE, message_id=f"msg-{run_id}"
        )
        return Delivery(
            message=message,
            id=run_id,
            type=message.message_type(),
            tenant=TENANT,
            subject=message.subject,
            source="test",
            time=datetime(2026, 11, 20, tzinfo=UTC),
            stream="CMD",
            sequence=1,
        )

    async def deliver(self, run_id: str = "run_1") -> None:
        """One delivery of the command to a worker; a crash of the worker ends it."""
        await answer_message(self.delivery(run_id), tools=self.tools)

    async def deliver_until_acked(self, run_ids: Sequence[str] = ("run_1",), die_at: int | None = None) -> bool:
        """Deliver each command until it is acknowledged, killing one process at step `die_at`; True when it died."""
        died = False
        self.fate.die_at = die_at
        for run_id in run_ids:
            while True:
                try:
                    await self.deliver(run_id)
                    break
                except Crash:
                    died = True
                    self.fate.restart()
                    self.rows.holder = None  # the lease of the dead worker runs out
        return died

    async def deliver_and_die(self, die_at: int, run_id: str = "run_1") -> bool:
        """One delivery to a worker that dies at that step; False when it got through before."""
        self.fate.die_at = die_at
        try:
            await self.deliver(run_id)
        except Crash:
            self.fate.restart()
            self.rows.holder = None
            return True
        return False

    @property
    def state(self) -> ThreadState:
        return fold(self.log.items)

    def types(self, run_id: str = "run_1") -> list[str]:
        return [str(item.entry.type) for item in self.log.items if item.entry.run_id == run_id]


@pytest.fixture
def world() -> World:
    """A thread with one submitted message."""
    made = World()
    made.rows.submit("run_1", "Hi")
    return made


@pytest.fixture
def make_world() -> type[World]:
    """For tests that need many worlds."""
    return World
