"""`POST /v1/responses`: the gateway's OpenAI responses, passed through under the watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter
from hatchery_common.errors import HatcheryError, InvalidInput
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hatchery_runtime_proxy.domain.deadlines import Due, StreamLimits, Watchdog
from hatchery_runtime_proxy.handlers.streams import MESSAGES
from hatchery_runtime_proxy.ports import ByteStream, Machine
from hatchery_runtime_proxy.routes.access import OpenMachine, RuntimeTools, Tools
from hatchery_runtime_proxy.routes.envelope import done, failure, read_object
from hatchery_runtime_proxy.routes.sessions import EVENT_STREAM, STREAM_HEADERS, never_silent, sse

router = APIRouter(prefix="/v1")
_PATH = "/v1/responses"
_PASSED = tuple(f"x-openclaw-{name}" for name in ("session-key", "agent-id", "message-channel", "account-id", "model"))
_REFUSAL_S, _REFUSAL_BYTES = 2.0, 16_384
_TERMINAL = (b"event: response.completed", b"event: response.failed", b"event: response.incomplete")


@router.post("/responses")
async def create_response(request: Request, machine: OpenMachine, tools: Tools) -> Response:
    """Streams when the body or the Accept header asks for it. Hanging up cancels the gateway's run, as OpenClaw has it."""
    body = await read_object(request, tools.max_body)
    headers = {name: value for name in _PASSED if (value := request.headers.get(name)) is not None}
    wants_stream = bool(body.get("stream")) or EVENT_STREAM in request.headers.get("accept", "")
    if not wants_stream:
        answer = await tools.gateways.post(machine, _PATH, body, headers)
        if answer.status != 200:
            return _refused(answer.status, answer.body)
        return done(answer.body)
    return await _open_stream(tools, machine, json.dumps({**body, "stream": True}).encode(), headers)


async def _open_stream(tools: RuntimeTools, machine: Machine, body: bytes, headers: dict[str, str]) -> Response:
    """Waits for the gateway's status as long as no sign of life is due; then the answer is a stream, whatever comes."""
    stack = AsyncExitStack()
    opening = asyncio.ensure_future(stack.enter_async_context(tools.gateways.stream(machine, _PATH, body, headers)))
    try:
        await asyncio.wait([opening], timeout=tools.limits.status_s)
    except asyncio.CancelledError:
        opening.cancel()
        raise
    if opening.done() and (opening.exception() is not None or opening.result().status != 200):
        async with stack:
            stream = opening.result()  # raises the typed error of a gateway that did not answer
            return _refused(stream.status, _parsed(await _beginning(stream.chunks)))
    return StreamingResponse(
        never_silent(_relay(opening, stack, tools.limits)), media_type=EVENT_STREAM, headers=STREAM_HEADERS
    )


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    """As much of a refusal as comes in a moment: a tenant's machine may never end it."""
    body = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REFUSAL_S):
            async for chunk in chunks:
                body += chunk
                if len(body) >= _REFUSAL_BYTES:
                    break
    return bytes(body[:_REFUSAL_BYTES])


async def _relay(
    opening: asyncio.Future[ByteStream], stack: AsyncExitStack, limits: StreamLimits
) -> AsyncGenerator[bytes]:
    """The gateway's bytes, with status events in silence and an error event instead of a silent end."""
    watchdog = Watchdog(limits, time.monotonic())
    upcoming: asyncio.Future[ByteStream] | asyncio.Future[bytes | None] = opening
    answer = _Answer()
    if not opening.done():
        yield sse("status", {"phase": "waiting"})
        watchdog.told(time.monotonic())
    try:
        while True:
            due = await _silence(upcoming, watchdog)
            if due is Due.STATUS:
                if not answer.gap:  # in the middle of an event it would tear that apart
                    yield sse("status", {"phase": "waiting"})
                continue
            if due is not None:
                yield answer.gap + _error(due.value, MESSAGES[due])
                return
            got = upcoming.result()
            if isinstance(got, bytes):
                watchdog.heard(time.monotonic())
                yield got
            fault = answer.take(got)
            if fault is not None:
                yield answer.gap + fault
            if answer.chunks is None or fault is not None or got is None:
                return
            upcoming = asyncio.ensure_future(_next(answer.chunks))
    except HatcheryError as error:
        yield answer.gap + _error(error.code, error.message)
    finally:
        upcoming.cancel()
        await asyncio.wait([upcoming], timeout=1)
        await stack.aclose()


async def _silence(
    upcoming: asyncio.Future[ByteStream] | asyncio.Future[bytes | None], watchdog: Watchdog
) -> Due | None:
    """Waits for what comes; returns what is due when it has not come by then, None when it has."""
    while True:
        await asyncio.wait([upcoming], timeout=watchdog.wait_s(time.monotonic()))
        if upcoming.done():
            return None
        due = watchdog.due(time.monotonic())
        if due is Due.STATUS:
            watchdog.told(time.monotonic())
        if due is not None:
            return due


class _Answer:
    """How far the gateway's answer has come: its bytes, and whether they reached their end."""

    def __init__(self) -> None:
        self.chunks: AsyncIterator[bytes] | None = None
        self._tail, self._ended = b"", False

    @property
    def gap(self) -> bytes:
        """What ends a half event, so that it does not swallow ours."""
        return b"" if not self._tail or self._tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"

    def take(self, got: ByteStream | bytes | None) -> bytes | None:
        """Takes the opening, a piece, or the end; returns the error event that follows from it, if one does."""
        if isinstance(got, ByteStream):
            if got.status != 200:
                return _error("gateway_rejected", f"the gateway answered with status {got.status}")
            self.chunks = got.chunks
        elif got is not None:
            self._tail = (self._tail + got)[-(len(got) + 64) :]
            self._ended = self._ended or any(mark in self._tail for mark in _TERMINAL)
        elif not self._ended:
            return _error("gateway_stream_ended", "the gateway's stream ended before its answer was complete")
        return None


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


def _error(code: str, message: str) -> bytes:
    return sse("error", {"type": "error", "code": code, "message": message})


def _parsed(whole: bytes) -> object:
    try:
        return json.loads(whole)
    except (ValueError, RecursionError):
        return whole.decode(errors="replace")[:300]


def _refused(status: int, body: object) -> Response:
    """The gateway's own refusal: 400 stays ours to show, anything else is a bad gateway."""
    message = str(body)[:300]
    if isinstance(body, dict):
        error: object = body.get("error")  # pyright: ignore[reportUnknownMemberType]
        message = str(error.get("message") if isinstance(error, dict) else error)  # pyright: ignore[reportUnknownMemberType]
    if status == 400:
        raise InvalidInput(message)
    return failure("gateway_error", f"the gateway answered with status {status}: {message}", 502)
