"""Sessions: list, history, send and abort."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from hatchery_common.log import get_logger
from hatchery_common.sse import event_data
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hatchery_runtime_proxy.domain import chat
from hatchery_runtime_proxy.domain.chat import ChatEvent, ChatEventKind
from hatchery_runtime_proxy.domain.transcripts import show_message
from hatchery_runtime_proxy.handlers.streams import watched
from hatchery_runtime_proxy.routes.access import OpenMachine, SessionKey, Tools
from hatchery_runtime_proxy.routes.envelope import done, failure, read_model

router = APIRouter(prefix="/v1/sessions")
EVENT_STREAM = "text/event-stream"
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_STATUS_BY_CODE = {
    "aborted": 409,
    "interrupted": 409,
    "gateway_rejected": 400,
    "gateway_timeout": 504,
    "first_byte_timeout": 504,
    "stalled": 504,
    "gateway_unavailable": 503,
}


class SendRequest(BaseModel):
    """One message for a session; the key makes it happen at most once and becomes the gateway's run id."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(min_length=1, max_length=200_000)
    idempotencyKey: str = Field(min_length=8, max_length=200, pattern=r"^[\x21-\x7e]+$")  # noqa: N815


class AbortRequest(BaseModel):
    """Which turn to end; without a run id the session's running one."""

    model_config = ConfigDict(extra="forbid")

    runId: str | None = Field(default=None, max_length=200)  # noqa: N815


@router.get("")
async def list_sessions(
    machine: OpenMachine, tools: Tools, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> Response:
    """Sessions, last used first."""
    found = await tools.gateways.call(machine, "sessions.list", {"limit": limit})
    rows = cast("list[dict[str, Any]]", found.get("sessions") or [])
    return done({"sessions": [_show_session(row) for row in rows], "has_more": bool(found.get("hasMore"))})


@router.get("/{key:path}/history")
async def read_history(
    key: SessionKey, machine: OpenMachine, tools: Tools, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> Response:
    """A session's messages, oldest first; a session that does not exist has none."""
    found = await tools.gateways.call(machine, "chat.history", {"sessionKey": key, "limit": limit})
    rows = cast("list[dict[str, Any]]", found.get("messages") or [])
    session = cast("dict[str, Any]", found.get("sessionInfo") or {})
    data = {
        "session_key": key,
        "session_id": found.get("sessionId"),
        "messages": [show_message(row) for row in rows],
        "has_more": bool(found.get("hasMore")),
        "active": bool(session.get("hasActiveRun")),
    }
    return done(data)


@router.post("/{key:path}/send")
async def send_message(request: Request, key: SessionKey, machine: OpenMachine, tools: Tools) -> Response:
    """One turn: as server-sent events when asked for, else its final answer. Hanging up never cancels it."""
    given = await read_model(request, SendRequest, tools.max_body)
    turn = tools.gateways.chat(machine, key, given.message, given.idempotencyKey)
    events = watched(turn, tools.limits)
    if EVENT_STREAM in request.headers.get("accept", ""):
        return StreamingResponse(never_silent(_stream(events)), media_type=EVENT_STREAM, headers=STREAM_HEADERS)
    last = chat.failed("gateway_stream_ended", "the turn ended without an answer")
    async with aclosing(events):
        async for event in events:
            last = event
    return _final(given.idempotencyKey, last)


@router.post("/{key:path}/abort")
async def abort_turn(request: Request, key: SessionKey, machine: OpenMachine, tools: Tools) -> Response:
    """Ends a running turn; ending none is no error."""
    given = await read_model(request, AbortRequest, tools.max_body)
    params = {"sessionKey": key} | ({"runId": given.runId} if given.runId else {})
    answer = await tools.gateways.call(machine, "chat.abort", params)
    return done({"aborted": bool(answer.get("aborted")), "run_ids": answer.get("runIds") or []})


def sse(name: str, data: Any) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), event_data(data))


async def never_silent(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The chunks; a defect of ours becomes an error event, because the status 200 has left already."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:  # noqa: BLE001 - the HTTP edge
            get_logger("runtime-proxy").error("http.stream_failed", exc_info=error)
            yield sse("error", {"code": "internal", "message": "an unexpected error; the log has the details"})


async def _stream(events: AsyncGenerator[ChatEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield sse(event.kind.value, event.data)


def _final(run_id: str, event: ChatEvent) -> Response:
    if event.kind is ChatEventKind.FINAL:
        return done({"run_id": run_id, **event.data})
    code = str(event.data["code"])
    return failure(code, str(event.data["message"]), _STATUS_BY_CODE.get(code, 502), run_id=run_id)


def _show_session(row: dict[str, Any]) -> dict[str, Any]:
    names = {
        "key": "key",
        "sessionId": "session_id",
        "kind": "kind",
        "channel": "channel",
        "label": "label",
        "updatedAt": "updated_at_ms",
        "model": "model",
        "status": "status",
        "totalTokens": "total_tokens",
        "hasActiveRun": "active",
        "abortedLastRun": "aborted_last_run",
    }
    return {ours: row.get(theirs) for theirs, ours in names.items()}
