"""One attempt at a turn of an OpenClaw session: send it by its key and stream what comes into the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import ThreadEntryType
from hatchery_common.failpoints import reach

from hatchery_agent.domain.coalescing import Coalescer
from hatchery_agent.domain.decisions import Ending, Failed, Finished, Lost, Waits, interrupted, not_running
from hatchery_agent.domain.recovery import find_answer
from hatchery_agent.domain.waiting import WAITABLE_STATES, WAITING_PHASE, look_again_s
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.ports import (
    Accepted,
    Checkpoint,
    Delta,
    Final,
    GatewayNotReady,
    Progress,
    RunRow,
    Runs,
    RuntimeTurns,
    Session,
    Steered,
    TurnError,
    TurnEvent,
)

_MAX_DELTA = 100_000  # characters; an entry must fit into one message of the bus
_POLL_S = 0.5
_STEERED = Failed("steered", "This message joined an answer that was already being given in this session.", False)


@dataclass(frozen=True)
class TurnLimits:
    """How long a turn, and before it the wait for its instance, may take."""

    turn_s: float = 600
    start_s: float = 180
    recovery_s: float = 20  # OpenClaw resumes an interrupted turn a few seconds after its restart
    abort_s: float = 3  # for ending a turn in OpenClaw that is given up here


@dataclass
class Turn:
    """One attempt at a run's turn; everything it learns goes to the log at once."""

    row: RunRow
    question: str
    attempt: int
    writer: ThreadWriter
    runtime: RuntimeTurns
    runs: Runs
    clock: Clock
    limits: TurnLimits
    began_ms: int  # the run's beginning: what is told of durations counts from there
    since_ms: int  # this worker's: the turn counts from there
    phase: str = ""
    _accepted: bool = False
    _first_text_ms: int | None = None
    _coalescer: Coalescer = field(default_factory=Coalescer)

    async def perform(self) -> Ending | Lost | Waits:
        """Drive the turn as far as this connection goes, within the deadline; never raises for what a gateway does."""
        self._accepted = self.row.accepted
        try:
            async with self.runtime.send(self._session, self.question, self.row.run_id) as events:
                return await self._stream(events)
        except GatewayNotReady as reason:
            return await self._not_ready(reason)

    async def _not_ready(self, reason: GatewayNotReady) -> Failed | Waits:
        """Wait for an instance that is on its way, without a worker; else say why there will be no answer."""
        if reason.refused:  # waiting would not change its mind
            return Failed("runtime_refused", f"The gateway refused this turn: {reason.message}", retryable=False)
        since_ms = self.writer.state.runs[self.row.run_id].waits_since_ms
        waited_s = 0.0 if since_ms is None else (self._now_ms() - since_ms) / 1000
        left_s = min(self.limits.start_s, self.limits.turn_s) - waited_s
        if reason.state not in WAITABLE_STATES or left_s <= 0:
            return interrupted() if self._accepted else not_running(reason.state, reason.message or None)
        await self._status(WAITING_PHASE, state=reason.state)
        woken_at = self.row.woken_at
        woken_s = None if woken_at is None else (self._now_ms() - to_ms(woken_at)) / 1000
        look_s = look_again_s(reason.state, waited_s=waited_s, woken_s=woken_s, accepted=self._accepted)
        return Waits(min(left_s, look_s))

    async def _stream(self, events: AsyncGenerator[TurnEvent]) -> Ending | Lost:
        queue: asyncio.Queue[TurnEvent | None] = asyncio.Queue()  # bounded by one answer
        pump = asyncio.create_task(_pump(events, queue))
        try:
            while self._left_s > 0:
                event = await self._next(queue)
                if event is None:
                    await self._flush()
                    await pump  # raises GatewayNotReady when nothing was sent
                    return Lost()
                ending = await self._take(event)
                if ending is not None:
                    return ending
            await self._flush()
            return await self._too_long()
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _next(self, queue: asyncio.Queue[TurnEvent | None]) -> TurnEvent | None:
        """The next event; text that is due is appended while waiting. Progress stands for a time-out."""
        due_ms = self._coalescer.wait_ms(self._now_ms())
        if due_ms == 0:
            await self._flush()
            due_ms = None
        wait_s = self._left_s if due_ms is None else min(self._left_s, due_ms / 1000)
        try:
            async with asyncio.timeout(max(wait_s, 0.001)):
                return await queue.get()
        except TimeoutError:
            return Progress(self.phase)

    async def _take(self, event: TurnEvent) -> Ending | None:
        match event:
            case Accepted():
                await self._mark_accepted()
            case Progress(phase=phase):
                if phase and phase != self.phase:
                    await self._status(phase)
            case Delta(text=text):
                await self._mark_accepted()
                if self._first_text_ms is None:
                    self._first_text_ms = self._now_ms() - self.began_ms
                self._coalescer.add(text, self._now_ms())
            case Final(text=text, usage=usage):
                await self._flush()
                return Finished(text, usage, self._first_text_ms)
            case Steered():
                return await self._answered_elsewhere(_STEERED)
            case TurnError(code="interrupted"):
                await self._flush()
                return await self._answered_elsewhere(interrupted())
            case TurnError(code=code, message=message, retryable=retryable):
                await self._flush()
                return Failed(code, message, retryable)
        return None

    async def _answered_elsewhere(self, otherwise: Failed) -> Ending:
        """OpenClaw may answer this turn in a run of its own: take that answer from its history, if one comes."""
        await self._status("recovering")
        idle_since_ms = self._now_ms()
        while self._left_s > 0:
            try:
                history = await self.runtime.history(self._session)
            except GatewayNotReady as reason:
                if reason.state not in WAITABLE_STATES:
                    return otherwise
                history = None
            answer = find_answer(history, self.row.run_id) if history else None
            if answer is not None:
                return answer
            if history is None or history.active:
                idle_since_ms = self._now_ms()
            elif self._now_ms() - idle_since_ms >= self.limits.recovery_s * 1000:
                return otherwise
            await asyncio.sleep(min(_POLL_S, max(self._left_s, 0.001)))
        return await self._too_long()

    async def _flush(self) -> None:
        text = self._coalescer.take()
        for start in range(0, len(text), _MAX_DELTA):  # a late reader may be given the whole answer in one piece
            piece = text[start : start + _MAX_DELTA]
            entry = self.writer.entry(ThreadEntryType.TEXT_DELTA, self.row.run_id, self.attempt, text=piece)
            await self.writer.append(entry)
            reach("agent.mid_chat")

    async def _mark_accepted(self) -> None:
        if self.phase == WAITING_PHASE:  # from here on a broken attempt is one that counts
            await self._status("accepted")
        if not self._accepted:
            self._accepted = True
            point = Checkpoint(self.attempt, accepted=True, text_sequence=self.writer.state.last)
            await self.runs.checkpoint(self.row.run_id, self.writer.lease, point)

    async def _status(self, phase: str, **data: str) -> None:
        if phase != self.phase:
            self.phase = phase
            kind = ThreadEntryType.RUN_STATUS
            await self.writer.append(self.writer.entry(kind, self.row.run_id, self.attempt, phase=phase, **data))

    async def _too_long(self) -> Failed:
        """OpenClaw is told to end it too: else it would work on for nobody, and the next message would join that turn."""
        if self._accepted:
            with contextlib.suppress(GatewayNotReady, TimeoutError):
                async with asyncio.timeout(self.limits.abort_s):
                    await self.runtime.abort(self._session, self.row.run_id)
        return Failed("turn_deadline", f"The answer took longer than {self.limits.turn_s:g} s and was given up.", True)

    @property
    def _session(self) -> Session:
        return Session(self.row.tenant, self.row.instance_id, self.row.session_key)

    @property
    def _left_s(self) -> float:
        return self.limits.turn_s - (self._now_ms() - self.since_ms) / 1000

    def _now_ms(self) -> int:
        return to_ms(self.clock.now())


async def _pump(events: AsyncGenerator[TurnEvent], queue: asyncio.Queue[TurnEvent | None]) -> None:
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                queue.put_nowait(event)
    finally:
        queue.put_nowait(None)
