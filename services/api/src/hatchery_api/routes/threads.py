"""/api/threads/* and /api/runs/*: durable conversations; the log is the only path to the reader."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from hatchery_common.contracts.threads import (
    GET_THREAD,
    LIST_THREADS,
    GetThreadRequest,
    ListThreadsRequest,
    ListThreadsResponse,
    ThreadView,
)
from pydantic import AfterValidator, BaseModel, Field

from hatchery_api import queries
from hatchery_api.domain.instances import DEFAULT_NAME, NAME_PATTERN
from hatchery_api.domain.threads import Snapshot
from hatchery_api.handlers import threads as handlers
from hatchery_api.handlers.threads import NewThread, Post
from hatchery_api.ports import Logged
from hatchery_api.queries import Reset
from hatchery_api.routes.door import Door, DoorOf
from hatchery_api.routes.envelope import FAILURES, Envelope
from hatchery_api.routes.identity import CurrentUser
from hatchery_api.routes.intents import IdempotencyKey, request_key
from hatchery_api.routes.operations import LastEventId
from hatchery_api.routes.sse import DOCUMENTED, HEARTBEAT, EventStream, frame
from hatchery_api.routes.views import RunView, run_view

router = APIRouter(tags=["threads"], responses=FAILURES)


def _storable(text: str) -> str:
    """Text that Postgres and JSON can hold: no NUL, no lone surrogates."""
    if "\x00" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        msg = "must not hold NUL or lone surrogates"
        raise ValueError(msg)
    return text


Text = Annotated[str, AfterValidator(_storable)]
ThreadId = Annotated[str, Path(pattern=r"^thd_[a-z0-9]{1,60}$")]
RunId = Annotated[str, Path(pattern=r"^run_[a-z0-9]{1,60}$")]


class ThreadBody(BaseModel):
    """A thread to create; the same `client_key` always names the same thread."""

    title: Text | None = Field(default=None, max_length=200)
    client_key: Text | None = Field(default=None, min_length=1, max_length=200)
    instance: str = Field(default=DEFAULT_NAME, pattern=NAME_PATTERN)


class MessageBody(BaseModel):
    """A message to answer."""

    text: Text = Field(min_length=1, max_length=64_000)


class PostedView(BaseModel):
    """Where the message went; the answer arrives in the thread's events."""

    thread_id: str
    run_id: str
    message_id: str
    instance_id: str
    events_url: str


@router.post(
    "/api/threads", name="threads createThread", operation_id="createThread", summary="Create a thread", status_code=201
)
async def create_thread(
    request: Request,
    user: CurrentUser,
    door: DoorOf,
    body: ThreadBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Envelope[ThreadView]:
    new = body or ThreadBody()
    key = request_key(request, user.tenant, idempotency_key, new.model_dump(mode="json"))
    wanted = NewThread(user.tenant, new.instance, new.title, new.client_key, key)
    return Envelope(data=await handlers.create_thread(wanted, calls=door.calls, store=door.store, clock=door.clock))


@router.get("/api/threads", name="threads listThreads", operation_id="listThreads", summary="Threads, newest first")
async def list_threads(
    user: CurrentUser,
    door: DoorOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9_.:=-]{1,200}$", description="`next` of the page before")
    ] = None,
) -> Envelope[ListThreadsResponse]:
    request = ListThreadsRequest(tenant=user.tenant, limit=limit, before=before)
    return Envelope(data=await door.calls.call(LIST_THREADS, request))


@router.get("/api/threads/{thread_id}", name="threads getThread", operation_id="getThread", summary="One thread")
async def get_thread(thread_id: ThreadId, user: CurrentUser, door: DoorOf) -> Envelope[ThreadView]:
    return Envelope(data=await _thread(door, user.tenant, thread_id))


@router.post(
    "/api/threads/{thread_id}/messages",
    name="threads postMessage",
    operation_id="postMessage",
    summary="Post a message; its answer arrives in the thread's events",
    status_code=202,
)
async def post_message(
    request: Request,
    response: Response,
    thread_id: ThreadId,
    user: CurrentUser,
    door: DoorOf,
    body: MessageBody,
    idempotency_key: IdempotencyKey = None,
) -> Envelope[PostedView]:
    key = request_key(request, user.tenant, idempotency_key, body.model_dump(mode="json"))
    post = Post(user.tenant, thread_id, body.text, key)
    posted = await handlers.post_message(post, calls=door.calls, store=door.store, clock=door.clock)
    if posted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return Envelope(
        data=PostedView(
            thread_id=posted.thread_id,
            run_id=posted.run_id,
            message_id=posted.message_id,
            instance_id=posted.instance_id,
            events_url=f"/api/threads/{posted.thread_id}/events",
        )
    )


@router.get(
    "/api/threads/{thread_id}/events",
    name="threads followThread",
    operation_id="followThread",
    summary="The thread's log as server-sent events; a Last-Event-ID that is not in it gets `reset` with a snapshot",
    response_model=None,
    response_class=EventStream,
    responses={**FAILURES, **DOCUMENTED},
)
async def follow_thread(
    thread_id: ThreadId, user: CurrentUser, door: DoorOf, last_event_id: LastEventId = None
) -> Response:
    await _thread(door, user.tenant, thread_id)
    return EventStream(_frames(door, user.tenant, thread_id, last_event_id), log=door.log)


@router.get("/api/runs/{run_id}", name="threads getRun", operation_id="getRun", summary="One run")
async def get_run(run_id: RunId, user: CurrentUser, door: DoorOf) -> Envelope[RunView]:
    return Envelope(data=run_view(await queries.run(user.tenant, run_id, store=door.store)))


async def _thread(door: Door, tenant: str, thread_id: str) -> ThreadView:
    """The tenant's thread; raises RemoteError not_found for another's too."""
    return await door.calls.call(GET_THREAD, GetThreadRequest(tenant=tenant, thread_id=thread_id))


async def _frames(door: Door, tenant: str, thread_id: str, last_event_id: str | None) -> AsyncGenerator[bytes]:
    log = queries.follow_thread(tenant, thread_id, last_event_id, logs=door.logs)
    async with aclosing(log):
        async for one in log:
            if one is None:
                yield HEARTBEAT
            elif isinstance(one, Reset):
                data = {"reason": one.reason.value, **snapshot_data(one.snapshot)}
                yield frame("reset", data, one.snapshot.sequence or None)
            else:
                yield frame_of(one)


def frame_of(logged: Logged) -> bytes:
    """One entry of the log on the wire; its id is its place in the stream."""
    return frame(str(logged.entry.type), logged.entry.model_dump(mode="json", exclude_none=True), logged.sequence)


def snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as a reader gets it."""
    return {
        "sequence": snapshot.sequence,
        "messages": [asdict(message) for message in snapshot.messages],
        "runs": {run_id: asdict(run) for run_id, run in snapshot.runs.items()},
    }
