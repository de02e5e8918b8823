"""The thread reducer: entries of the log in order → messages, runs and attempts.

The rules are those of docs/reference/threads.md; every reader (worker, api, browser) follows them:
a run exists from its first `message.user`; a higher attempt replaces the partial text of a lower one; the first end counts
and whatever follows it for that run is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType

from hatchery_agent.domain.waiting import WAITING_PHASE


class RunPhase(StrEnum):
    """How far a run has come according to the log."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass
class RunState:
    """One run as the log tells it."""

    run_id: str
    message_id: str = ""
    question: str = ""
    phase: RunPhase = RunPhase.QUEUED
    attempt: int = 0
    text: str = ""
    answer: str | None = None
    waiting: bool = False  # the last that its attempt told is that it waits for the instance
    waits_since_ms: int | None = None  # when its attempt first waited; an attempt after a break begins anew
    end: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def ended(self) -> bool:
        """Whether the log holds this run's end."""
        return self.phase in (RunPhase.FINISHED, RunPhase.FAILED)

    @property
    def visible_text(self) -> str:
        """What a reader shows: the answer, else the text so far of the highest attempt."""
        return self.answer if self.answer is not None else self.text


@dataclass(frozen=True)
class ShownMessage:
    """One message of the conversation."""

    role: str
    run_id: str
    text: str


@dataclass
class ThreadState:
    """A folded log; `last` is the sequence of the last entry that was folded in."""

    last: int = 0
    created: bool = False
    runs: dict[str, RunState] = field(default_factory=dict[str, RunState])

    @property
    def open_runs(self) -> list[RunState]:
        """Runs without an end, oldest first."""
        return [run for run in self.runs.values() if not run.ended]

    @property
    def messages(self) -> list[ShownMessage]:
        """The conversation: each run's question and, as far as it goes, its answer."""
        shown: list[ShownMessage] = []
        for run in self.runs.values():
            shown.append(ShownMessage("user", run.run_id, run.question))
            if run.visible_text:
                shown.append(ShownMessage("assistant", run.run_id, run.visible_text))
        return shown

    def apply(self, sequence: int, entry: ThreadEntry) -> None:
        """Fold one more entry in; one that was folded before (by sequence) is ignored."""
        if sequence <= self.last:
            return
        self.last = sequence
        if entry.type is ThreadEntryType.THREAD_CREATED:
            self.created = True
        elif entry.type is ThreadEntryType.MESSAGE_USER and entry.run_id:
            self._asked(entry, entry.run_id)
        elif isinstance(entry.type, ThreadEntryType) and (run := self.runs.get(entry.run_id or "")):
            _advance(run, entry)

    def _asked(self, entry: ThreadEntry, run_id: str) -> None:
        if run_id not in self.runs:
            data = entry.data
            self.runs[run_id] = RunState(run_id, str(data.get("message_id", "")), str(data.get("text", "")))


def fold(entries: Iterable[tuple[int, ThreadEntry]]) -> ThreadState:
    """The state that these entries, given with their sequences in order, add up to."""
    state = ThreadState()
    for sequence, entry in entries:
        state.apply(sequence, entry)
    return state


def _advance(run: RunState, entry: ThreadEntry) -> None:
    if run.ended:
        return
    attempt = entry.attempt or 0
    if entry.type is ThreadEntryType.RUN_STARTED and attempt > run.attempt:
        run.attempt, run.text, run.answer, run.phase = attempt, "", None, RunPhase.RUNNING
        run.waits_since_ms = None
    elif attempt < run.attempt:
        return
    run.waiting = entry.type is ThreadEntryType.RUN_STATUS and entry.data.get("phase") == WAITING_PHASE
    if run.waiting and run.waits_since_ms is None:
        run.waits_since_ms = entry.at_ms
    if entry.type is ThreadEntryType.TEXT_DELTA:
        run.text += str(entry.data.get("text", ""))
    elif entry.type is ThreadEntryType.MESSAGE_ASSISTANT:
        run.answer = str(entry.data.get("text", ""))
    elif entry.type is ThreadEntryType.RUN_FINISHED:
        run.phase, run.end = RunPhase.FINISHED, dict(entry.data)
    elif entry.type is ThreadEntryType.RUN_FAILED:
        run.phase, run.end = RunPhase.FAILED, dict(entry.data)
