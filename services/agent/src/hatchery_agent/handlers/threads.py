"""Answers to rpc: threads are created, read and listed; a message's text is stored until a worker logs it."""

from __future__ import annotations

from hatchery_common.contracts.threads import (
    CreateThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    ListThreadsResponse,
    SubmitMessageRequest,
    SubmitMessageResponse,
    ThreadView,
    is_session_key,
)
from hatchery_common.errors import InvalidInput
from hatchery_common.ids import is_token

from hatchery_agent.ports import Threads


async def create_thread(request: CreateThreadRequest, *, threads: Threads) -> ThreadView:
    """The same client key names the same thread, for ever (per tenant)."""
    _check(tenant=request.tenant, instance_id=request.instance_id)
    if request.session_key is not None and not is_session_key(request.session_key):
        hint = "`agent:<agent>:<name>`, printable and without spaces"
        raise InvalidInput("session_key is not a session key of OpenClaw", hint=hint)
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
