"""Threads: the wish to post, the facts about runs, and the entries of a thread's durable log.

The log is the stream THREADS, subject `thr.<tenant>.<thread>`; its entries may hold text, CMD and EVT may not. The text of a
post therefore lies in the agent's and the api's reach only as a log entry or a short-lived row, never on CMD.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from hatchery_common.contracts.base import Command, Event, Model, Rpc


class PostMessage(Command):
    """Answer the message that the thread's log row `message_id` holds; the command is the run's job (run_id = its id)."""

    aggregate = "thread"
    verb = "post"
    key = "thread_id"

    thread_id: str
    run_id: str
    instance_id: str
    message_id: str


class RunEvent(Event):
    """A fact about a run, without any text of it."""

    aggregate = "run"
    key = "run_id"
    verb = "noted"

    run_id: str
    thread_id: str
    instance_id: str
    attempt: int = 1
    at_ms: int = 0


class RunStarted(RunEvent):
    """A worker holds the run's lease and works on it."""

    verb = "started"


class RunFinished(RunEvent):
    """The run ended with an answer."""

    verb = "finished"
    first_text_ms: int | None = None
    duration_ms: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None


class RunFailed(RunEvent):
    """The run ended without an answer; `code` says why."""

    verb = "failed"
    code: str = "internal"
    retryable: bool = True


class ThreadEntryType(StrEnum):
    """Kinds of entries in a thread's log."""

    THREAD_CREATED = "thread.created"
    MESSAGE_USER = "message.user"
    RUN_QUEUED = "run.queued"
    RUN_STARTED = "run.started"
    RUN_STATUS = "run.status"
    TEXT_DELTA = "text.delta"
    MESSAGE_ASSISTANT = "message.assistant"
    RUN_FINISHED = "run.finished"
    RUN_FAILED = "run.failed"


class ThreadEntry(Model):
    """One entry of a thread's log; `data` depends on the type (docs/reference/threads.md).

    message.user {message_id, text}; run.queued {}; run.started {}; run.status {phase}; text.delta {text};
    message.assistant {text, usage?}; run.finished {duration_ms, first_text_ms, usage?}; run.failed {code, message, retryable}.
    A reader shows, per run, only the deltas of the highest attempt. It passes over types that it does not know: those of a writer
    of a later release, which are read as plain text.
    """

    id: str
    type: Annotated[ThreadEntryType | str, Field(union_mode="left_to_right")]
    thread_id: str
    at_ms: int
    run_id: str | None = None
    attempt: int | None = None
    data: dict[str, Any] = Field(default_factory=dict)


RUN_ENDS: frozenset[ThreadEntryType] = frozenset({ThreadEntryType.RUN_FINISHED, ThreadEntryType.RUN_FAILED})


def thread_subject(tenant: str, thread_id: str) -> str:
    """The subject that holds a thread's log."""
    return f"thr.{tenant}.{thread_id}"


SESSION_KEY_LIMIT = 200
_SESSION_KEY = re.compile(r"agent:[a-z0-9][a-z0-9_-]{0,63}:\S+")


def is_session_key(key: str) -> bool:
    """Whether a thread can speak in this OpenClaw session: it is written as OpenClaw files it, and the runtime API takes it."""
    return len(key) <= SESSION_KEY_LIMIT and key.isprintable() and _SESSION_KEY.fullmatch(key) is not None


class CreateThreadRequest(Model):
    """Create a thread, or return the one that this client key already names.

    A new thread speaks in the OpenClaw session `session_key` (without one in a session of its own). `replaces_instance_id` is an
    instance that is gone: a thread of this client key that was bound to it is bound to `instance_id` from now on.
    """

    tenant: str
    instance_id: str
    title: str | None = Field(default=None, max_length=200)
    client_key: str | None = Field(default=None, max_length=200)
    session_key: str | None = Field(default=None, max_length=SESSION_KEY_LIMIT)  # is_session_key
    replaces_instance_id: str | None = None


class ThreadView(Model):
    """A thread as its owner sees it."""

    thread_id: str
    instance_id: str
    title: str | None = None
    kind: str = "openclaw"
    session_key: str
    created_at_ms: int
    updated_at_ms: int
    last_run_id: str | None = None
    last_run_status: str | None = None


class GetThreadRequest(Model):
    """Ask for one thread of the tenant."""

    tenant: str
    thread_id: str


class ListThreadsRequest(Model):
    """Ask for the tenant's threads, newest first."""

    tenant: str
    limit: int = Field(default=50, ge=1, le=200)
    before: str | None = None


class ListThreadsResponse(Model):
    """Threads, newest first; `next` continues."""

    threads: tuple[ThreadView, ...] = ()
    next: str | None = None


class SubmitMessageRequest(Model):
    """Store a message's text for a run to answer (idempotent by run_id)."""

    tenant: str
    thread_id: str
    run_id: str
    message_id: str
    text: Annotated[str, Field(min_length=1, max_length=64_000)]


class SubmitMessageResponse(Model):
    """Where the message went."""

    thread_id: str
    run_id: str
    message_id: str
    instance_id: str
    status: Literal["accepted", "known"] = "accepted"


CREATE_THREAD: Rpc[CreateThreadRequest, ThreadView] = Rpc("agent", "create_thread", CreateThreadRequest, ThreadView)
GET_THREAD: Rpc[GetThreadRequest, ThreadView] = Rpc("agent", "get_thread", GetThreadRequest, ThreadView)
LIST_THREADS: Rpc[ListThreadsRequest, ListThreadsResponse] = Rpc(
    "agent", "list_threads", ListThreadsRequest, ListThreadsResponse
)
SUBMIT_MESSAGE: Rpc[SubmitMessageRequest, SubmitMessageResponse] = Rpc(
    "agent", "submit_message", SubmitMessageRequest, SubmitMessageResponse
)
COMMANDS: tuple[type[Command], ...] = (PostMessage,)
EVENTS: tuple[type[Event], ...] = (RunStarted, RunFinished, RunFailed)
