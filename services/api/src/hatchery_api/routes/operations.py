"""/api/operations/*: what became of an accepted intent, and its progress as it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, Field

from hatchery_api import queries
from hatchery_api.domain.operations import OperationEvent
from hatchery_api.routes.door import Door, DoorOf
from hatchery_api.routes.envelope import FAILURES, Envelope
from hatchery_api.routes.identity import CurrentUser
from hatchery_api.routes.sse import DOCUMENTED, HEARTBEAT, EventStream, frame
from hatchery_api.routes.views import OperationView, operation_view

router = APIRouter(prefix="/api/operations", tags=["operations"], responses=FAILURES)
OperationId = Annotated[str, Path(pattern=r"^op_[a-z0-9]{1,60}$")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Resume after this event, as browsers do by themselves")
]
After = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only events after this number, the oldest first")]
Limit = Annotated[int, Query(ge=1, le=500, description="At most so many events; without `after` the newest")]
_STREAM: dict[int | str, dict[str, Any]] = {
    **FAILURES,
    **DOCUMENTED,
    204: {"description": "The reader has seen the terminal event; browsers stop reconnecting"},
}


class ProgressView(BaseModel):
    """One numbered line of progress; `step` and `status` are those of `data`, where it has them."""

    number: int
    type: str
    at: int
    step: str | None = None
    status: str | None = None
    data: dict[str, Any]


class OperationWithProgress(OperationView):
    """The operation with a page of its progress; events are numbered from 1 without gaps."""

    events: list[ProgressView]
    last_event: int = Field(description="the number of the newest event; beyond the page's last one there is more")


def _progress(event: OperationEvent) -> ProgressView:
    step, status = event.data.get("step"), event.data.get("status")
    return ProgressView(number=event.number, type=event.type, at=event.at_ms, step=step, status=status, data=event.data)


@router.get(
    "/{operation_id}",
    name="operations getOperation",
    operation_id="getOperation",
    summary="One operation with its newest steps, or those after a number",
)
async def get_operation(
    operation_id: OperationId, user: CurrentUser, door: DoorOf, after: After = None, limit: Limit = 100
) -> Envelope[OperationWithProgress]:
    found = await queries.progress(user.tenant, operation_id, after, limit, store=door.store)
    events = [_progress(event) for event in found.events]
    shown = operation_view(found.operation).model_dump()
    return Envelope(data=OperationWithProgress(**shown, events=events, last_event=found.last_event))


@router.get(
    "/{operation_id}/events",
    name="operations followOperation",
    operation_id="followOperation",
    summary="Progress as server-sent events: accepted, status, step_started, step_finished, overdue, and the end",
    response_model=None,
    response_class=EventStream,
    responses=_STREAM,
)
async def follow_operation(
    operation_id: OperationId, user: CurrentUser, door: DoorOf, last_event_id: LastEventId = None
) -> Response:
    operation = await queries.operation(user.tenant, operation_id, store=door.store)
    after = _number(last_event_id)
    known = await queries.last_event(operation_id, store=door.store)
    if after > known:
        after = 0  # not a number of ours: tell the whole story
    elif after == known and not operation.is_open:
        return Response(status_code=204)
    return EventStream(_frames(operation_id, after, door), log=door.log)


async def _frames(operation_id: str, after: int, door: Door) -> AsyncGenerator[bytes]:
    events = queries.follow_operation(operation_id, after, store=door.store, changes=door.changes)
    async with aclosing(events):
        async for event in events:
            if event is None:
                yield HEARTBEAT
            else:
                yield frame(event.type, _progress(event).model_dump(mode="json"), event.number)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
