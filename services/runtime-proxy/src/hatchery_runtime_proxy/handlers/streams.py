"""Puts a watchdog on streams: a sign of life within a second, a named error at a deadline, never a silent end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from hatchery_common.errors import HatcheryError

from hatchery_runtime_proxy.domain import chat
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.domain.deadlines import Due, StreamLimits, Watchdog

MESSAGES = {
    Due.FIRST_BYTE: "the gateway accepted the request and then sent nothing",
    Due.IDLE: "the gateway stopped sending in the middle of the answer",
}


async def watched(events: AsyncGenerator[ChatEvent], limits: StreamLimits) -> AsyncGenerator[ChatEvent]:
    """The events of a turn, with status events in silence and exactly one terminal event at the end."""
    watchdog = Watchdog(limits, time.monotonic())
    upcoming = asyncio.ensure_future(_next(events))
    try:
        while True:
            await asyncio.wait([upcoming], timeout=watchdog.wait_s(time.monotonic()))
            if upcoming.done():
                event = _result(upcoming)
                yield event
                if event.terminal:
                    return
                watchdog.heard(time.monotonic())
                upcoming = asyncio.ensure_future(_next(events))
                continue
            due = watchdog.due(time.monotonic())
            if due is Due.STATUS:
                watchdog.told(time.monotonic())
                yield chat.status("waiting")
            elif due is not None:
                yield chat.failed(due.value, MESSAGES[due])
                return
    finally:
        upcoming.cancel()
        await asyncio.wait([upcoming], timeout=1)
        with contextlib.suppress(RuntimeError):  # it may still be running when its last step does not end
            await events.aclose()


async def _next(events: AsyncGenerator[ChatEvent]) -> ChatEvent:
    async for event in events:
        return event
    return chat.failed("gateway_stream_ended", "the gateway's events ended without an answer")


def _result(task: asyncio.Future[ChatEvent]) -> ChatEvent:
    try:
        return task.result()
    except HatcheryError as error:
        return chat.failed(error.code, error.message)
