"""POST /api/openclaw/chat: a view that posts to a thread and streams that thread's log until the run ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, Field

from hatchery_api import queries
from hatchery_api.domain.instances import DEFAULT_NAME, NAME_PATTERN
from hatchery_api.handlers import threads as handlers
from hatchery_api.handlers.threads import Post, Posted
from hatchery_api.routes.door import Door, DoorOf
from hatchery_api.routes.envelope import FAILURES
from hatchery_api.routes.identity import CurrentUser
from hatchery_api.routes.intents import IdempotencyKey, request_key
from hatchery_api.routes.sse import DOCUMENTED, HEARTBEAT, EventStream, frame
from hatchery_api.routes.threads import Text, frame_of

router = APIRouter(tags=["openclaw"], responses=FAILURES)


class ChatBody(BaseModel):
    """A message; without thread and session it goes to the instance's default thread."""

    message: Text = Field(min_length=1, max_length=64_000)
    thread_id: str | None = Field(
        default=None,
        pattern=r"^thd_[a-z0-9]{1,60}$",
        validation_alias=AliasChoices("threadId", "thread_id"),
        serialization_alias="threadId",
    )
    session_key: Text | None = Field(
        default=None,
        min_length=1,
        max_length=150,
        validation_alias=AliasChoices("sessionKey", "session_key"),
        serialization_alias="sessionKey",
    )
    instance: str = Field(default=DEFAULT_NAME, pattern=NAME_PATTERN)


@router.post(
    "/chat",
    name="openclaw chat",
    operation_id="chat",
    summary="Say something and read the answer as server-sent events; leaving early never cancels the run",
    response_model=None,
    response_class=EventStream,
    responses={**FAILURES, **DOCUMENTED},
)
async def chat(
    request: Request, user: CurrentUser, door: DoorOf, body: ChatBody, idempotency_key: IdempotencyKey = None
) -> Response:
    thread_id = await _thread_id(door, user.tenant, body)
    _, before = await door.logs.bounds(user.tenant, thread_id)
    key = request_key(request, user.tenant, idempotency_key, body.model_dump(mode="json"))
    post = Post(user.tenant, thread_id, body.message, key)
    posted = await handlers.post_message(post, calls=door.calls, store=door.store, clock=door.clock)
    headers = {"X-Hatchery-Thread-Id": posted.thread_id, "X-Hatchery-Run-Id": posted.run_id}
    after = before if posted.fresh else 0  # the run of an earlier request may be in the log already, up to its end
    entries = _frames(door, user.tenant, posted, after)
    return EventStream(entries, headers=headers, log=door.log, at_limit=_too_long(posted))


def _too_long(posted: Posted) -> bytes:
    hint = f"read on at /api/threads/{posted.thread_id}/events"
    return frame(
        "error", {"code": "stream_limit", "message": "the run takes longer than this stream may", "hint": hint}
    )


async def _thread_id(door: Door, tenant: str, body: ChatBody) -> str:
    if body.thread_id is not None:
        return body.thread_id
    if body.session_key is not None:
        return await handlers.thread_of_session(
            tenant, body.instance, body.session_key, calls=door.calls, store=door.store
        )
    return await handlers.default_thread(tenant, body.instance, calls=door.calls, store=door.store)


async def _frames(door: Door, tenant: str, posted: Posted, after: int) -> AsyncGenerator[bytes]:
    ids = {"thread_id": posted.thread_id, "run_id": posted.run_id, "message_id": posted.message_id}
    yield frame("accepted", ids)
    entries = queries.follow_run(tenant, posted.thread_id, posted.run_id, after, logs=door.logs)
    async with aclosing(entries):
        async for logged in entries:
            yield HEARTBEAT if logged is None else frame_of(logged)
