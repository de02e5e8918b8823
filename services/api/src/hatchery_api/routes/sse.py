"""Server-sent events on the wire."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import StreamingResponse
from hatchery_common.bus.errors import RemoteError
from hatchery_common.errors import HatcheryError
from hatchery_common.log import redact_text
from hatchery_common.sse import event_data
from structlog.typing import FilteringBoundLogger

from hatchery_api.routes.envelope import UNEXPECTED

LIMIT_S = 900.0
HEARTBEAT = b": heartbeat\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENT_SCHEMA: dict[str, Any] = {
    "description": "one event; `data` is JSON",
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": _EVENT_SCHEMA}}}
}


def frame(event: str, data: Any, sequence: int | None = None) -> bytes:
    """One event; its id, where it has one, is what `Last-Event-ID` resumes after."""
    head = f"id: {sequence}\n" if sequence is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + event_data(data) + b"\n\n"


class EventStream(StreamingResponse):
    """Streams frames; an error on the way becomes an `error` event, never a silent end.

    After LIMIT_S the stream ends, since who may read was checked at its start; a browser reconnects by itself, and `at_limit`
    tells those who cannot.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        *,
        log: FilteringBoundLogger,
        at_limit: bytes = b": please reconnect\n\n",
        limit_s: float = LIMIT_S,
    ) -> None:
        guarded = _guarded(frames, log, at_limit, limit_s)
        super().__init__(guarded, status_code, {**_HEADERS, **(headers or {})})


async def _guarded(
    frames: AsyncGenerator[bytes], log: FilteringBoundLogger, at_limit: bytes, limit_s: float
) -> AsyncGenerator[bytes]:
    """The frames, with errors named and an end; heartbeats make sure that the limit is noticed."""
    began = time.monotonic()
    yield b"retry: 2000\n\n"
    try:
        async for one in frames:
            yield one
            if time.monotonic() - began > limit_s:
                yield at_limit
                return
    except HatcheryError as error:
        code = error.remote_code if isinstance(error, RemoteError) else error.code
        yield frame("error", {"code": code, "message": redact_text(error.message), "hint": error.hint})
    except Exception:  # this is the edge: a stream that just ends would be opened again for ever, and nobody told
        log.exception("api.stream.failed")
        yield frame("error", {"code": HatcheryError.code, "message": UNEXPECTED, "hint": None})
    finally:
        await frames.aclose()
