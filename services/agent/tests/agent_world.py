"""One thread with its worker's surroundings, in which a worker can die at any step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent_fakes import INSTANCE, TENANT, THREAD, Crash, FakeLog, FakeRows, FakeRuntime, Fate
from hatchery_agent.domain.folding import ThreadState, fold
from hatchery_agent.handlers.runs import answer_message, resume_run
from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.handlers.workbench import RunTools
from hatchery_common.bus import Delivery
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.instances import InstanceStarted, InstanceState
from hatchery_common.contracts.threads import PostMessage


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
            parking=self.rows,
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

    async def resume(self, *, hurry: bool = False) -> None:
        """Take up what is parked, when it is due (in a hurry: now), until nothing is."""
        while self.rows.due_at:
            if hurry:
                self.rows.due_at = dict.fromkeys(self.rows.due_at, 0.0)
            for row in await self.rows.due(1):
                await resume_run(row, tools=self.tools)
            await asyncio.sleep(0 if hurry else await self.rows.next_due_s() or 0)

    def news(self, at: datetime) -> Delivery[InstanceStarted]:
        """The event that the instance is ready."""
        state = InstanceState.model_validate(
            dict.fromkeys(("version", "generation", "since_ms", "created_at_ms", "updated_at_ms"), 1)
            | {"instance_id": INSTANCE, "tenant": TENANT, "name": "default", "driver": "process"}
            | {"desired": "running", "status": "ready"}
        )
        event = InstanceStarted(tenant=TENANT, instance_id=INSTANCE, state=state)
        return Delivery(
            message=event,
            id="evt_1",
            type=event.message_type(),
            tenant=TENANT,
            subject=event.subject,
            source="test",
            time=at,
            stream="EVT",
            sequence=1,
        )

    async def deliver_until_acked(self, run_ids: Sequence[str] = ("run_1",), die_at: int | None = None) -> bool:
        """Deliver each command until it is acknowledged, killing one process at step `die_at`; True when it died."""
        died = False
        self.fate.die_at = die_at
        for run_id in run_ids:
            while True:
                try:
                    await self.deliver(run_id)
                    await self.resume(hurry=True)
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
