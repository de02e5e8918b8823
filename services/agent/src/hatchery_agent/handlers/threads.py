"""Answers to rpc: threads are created, read and listed; a message's text is stored until a worker logs it."""

from __future__ import annotations

import re

from hatchery_common.contracts.threads import (
    CreateThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    ListThreadsResponse,
    SubmitMessageRequest,
    SubmitMessageResponse,
    ThreadView,
)
from hatchery_common.errors import InvalidInput
from hatchery_common.ids import is_token

from hatchery_agent.ports import Threads

_SESSION_KEY = re.compile(r"agent:[a-z0-9][a-z0-9_-]{0,63}:[^\s\x00-\x1f\x7f]+")


async def create_thread(request: CreateThreadRequest, *, threads: Threads) -> ThreadView:
    """The same client key names the same thread, for ever (per tenant)."""
    _check(tenant=request.tenant, instance_id=request.instance_id)
    if request.session_key is not None and not _SESSION_KEY.fullmatch(request.session_key):
        raise InvalidInput(
            "session_key is not a session key of OpenClaw", hint="`agent:<agent>:<name>`, without spaces"
        )
    return await threads.create(request)


async def get_thread(request: GetThreadRequest, *, threads: Threads) -> ThreadView:
    """NotFound for another tenant's thread, as for one that never was."""
    return await threads.get(request.tenant, request.thread_id)


async def list_threads(request: ListThreadsRequest, *, threads: Threads) -> ListThreadsResponse:
    """The tenant's threads, the most recently used first."""
    return await threads.list(request)


async def submit_message(request: SubmitMessageRequest, *, threads: Threads) -> SubmitMessageResponse:
    """Store the text for the run; repeating it changes nothing."""
    _check(tenant=request.tenant, run_id=request.run_id, message_id=request.message_id)
    if not request.text.strip():
        raise InvalidInput("the message is empty", hint="send some text")
    return await threads.submit(request)


def _check(**tokens: str) -> None:
    for name, value in tokens.items():
        if not is_token(value):
            raise InvalidInput(f"{name} is not a valid id")
