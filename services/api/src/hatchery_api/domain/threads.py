"""A thread's log folded into messages: the snapshot that a reader gets who cannot resume."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from hatchery_common.contracts.threads import ThreadEntry, ThreadEntryType, is_session_key
from hatchery_common.errors import InvalidInput


@dataclass
class FoldedMessage:
    """One message; an assistant's may be unfinished (`status` = running)."""

    role: str
    text: str
    run_id: str | None
    at_ms: int
    message_id: str | None = None


@dataclass
class FoldedRun:
    """Where a run stands, and which attempt's text counts."""

    run_id: str
    status: str
    attempt: int = 0
    error: str | None = None


@dataclass
class Snapshot:
    """Everything a reader needs to show the thread as of `sequence`."""

    sequence: int = 0
    messages: list[FoldedMessage] = field(default_factory=list[FoldedMessage])
    runs: dict[str, FoldedRun] = field(default_factory=dict[str, FoldedRun])


_THREADS_KEY = re.compile(r"agent:main:hatch:(thd_[a-z0-9]{1,60})")
_CASE_COUNTS = ("signal:", "matrix:")  # channels whose ids OpenClaw does not write in lower case


def canonical_session_key(text: str) -> str:
    """The session key as OpenClaw files it: in lower case, and of the agent `main` where it names none; raises InvalidInput."""
    lowered = text.lower()
    key = text if any(channel in lowered for channel in _CASE_COUNTS) else lowered
    key = key if lowered.startswith("agent:") else f"agent:main:{key}"
    if not is_session_key(key):  # as it will be used: in lower case a text may be longer
        hint = "`agent:<agent>:<name>` or `<name>`, printable and without spaces"
        raise InvalidInput("this is no session key of OpenClaw, or too long a one", hint=hint)
    return key


def thread_of_key(session_key: str) -> str | None:
    """The thread whose own session this canonical key names."""
    found = _THREADS_KEY.fullmatch(session_key)
    return found.group(1) if found else None


class Resume(StrEnum):
    """How a reader's Last-Event-ID relates to the log."""

    FROM_START = "from_start"
    AFTER = "after"
    BEYOND_END = "beyond_end"
    BEFORE_FIRST = "before_first"
    UNREADABLE = "unreadable"


def resume(last_event_id: str | None, first: int, last: int) -> tuple[Resume, int]:
    """Where to go on reading: (how, after which sequence). Everything but FROM_START and AFTER needs a snapshot."""
    if last_event_id is None or last_event_id == "0":
        return Resume.FROM_START, 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 18):
        return Resume.UNREADABLE, 0
    given = int(last_event_id)
    if given > last:
        return Resume.BEYOND_END, 0
    return (Resume.BEFORE_FIRST, 0) if given < first else (Resume.AFTER, given)


_STATUS = {
    ThreadEntryType.RUN_QUEUED: "queued",
    ThreadEntryType.RUN_STARTED: "running",
    ThreadEntryType.RUN_FINISHED: "finished",
    ThreadEntryType.RUN_FAILED: "failed",
}

_ENDED = frozenset({"finished", "failed"})


def fold(entries: Iterable[tuple[int, ThreadEntry]]) -> Snapshot:
    """The snapshot after these (sequence, entry) pairs."""
    snapshot = Snapshot()
    for sequence, entry in entries:
        snapshot.sequence = sequence
        _apply(snapshot, entry)
    return snapshot


def _apply(snapshot: Snapshot, entry: ThreadEntry) -> None:
    if not isinstance(entry.type, ThreadEntryType):
        return  # of a writer of a later release
    if entry.type is ThreadEntryType.MESSAGE_USER:
        text, message_id = str(entry.data.get("text", "")), entry.data.get("message_id")
        snapshot.messages.append(FoldedMessage("user", text, entry.run_id, entry.at_ms, message_id))
    if entry.run_id is None:
        return
    run = snapshot.runs.setdefault(entry.run_id, FoldedRun(entry.run_id, "queued"))
    if run.status in _ENDED:
        return
    if entry.type is ThreadEntryType.RUN_STARTED:
        _restart(snapshot, run, entry)
    if entry.type in _STATUS:
        run.status = _STATUS[entry.type]
    if entry.type is ThreadEntryType.RUN_FAILED:
        run.error = str(entry.data.get("message") or entry.data.get("code") or "failed")
    if entry.type in {ThreadEntryType.TEXT_DELTA, ThreadEntryType.MESSAGE_ASSISTANT}:
        _write(snapshot, run, entry)


def _restart(snapshot: Snapshot, run: FoldedRun, entry: ThreadEntry) -> None:
    """A later attempt begins anew: what the one before had written does not count."""
    attempt = entry.attempt or 1
    if attempt > run.attempt > 0:
        snapshot.messages = [one for one in snapshot.messages if one.role != "assistant" or one.run_id != run.run_id]
    run.attempt = max(run.attempt, attempt)


def _write(snapshot: Snapshot, run: FoldedRun, entry: ThreadEntry) -> None:
    """Add a delta or set the whole text; deltas of an attempt that was overtaken do not count."""
    attempt = entry.attempt or 1
    if attempt < run.attempt:
        return
    text = str(entry.data.get("text", ""))
    answer = _answer(snapshot, entry)
    if entry.type is ThreadEntryType.MESSAGE_ASSISTANT or attempt > run.attempt:
        answer.text = text
    else:
        answer.text += text
    run.attempt = attempt


def _answer(snapshot: Snapshot, entry: ThreadEntry) -> FoldedMessage:
    for message in reversed(snapshot.messages):
        if message.role == "assistant" and message.run_id == entry.run_id:
            return message
    message = FoldedMessage("assistant", "", entry.run_id, entry.at_ms)
    snapshot.messages.append(message)
    return message
