"""One chat turn over the gateway's `chat.send`, exactly once for its key, also across restarts of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from hatchery_runtime_proxy.adapters.openclaw_socket import GatewaySocket
from hatchery_runtime_proxy.domain import chat
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.domain.transcripts import Ending, Turn, find_turn, text_of
from hatchery_runtime_proxy.ports import GatewayRejected, GatewayUnavailable

_HISTORY = 100
_INTERRUPTED = "the gateway restarted before it finished this turn; it was not repeated"
_NO_ANSWER = "the gateway ended this turn without an answer"
_LOST = "the connection to the gateway broke; the turn may still be running there"


async def converse(
    socket: GatewaySocket, session_key: str, message: str, key: str, timeout: float
) -> AsyncGenerator[ChatEvent]:
    """The turn's events; raises the errors of ports only before `accepted`."""
    before = await _turn(socket, session_key, key, timeout)
    if before.ending is not None:
        yield chat.accepted(key, replayed=True)
        yield _ended(before)
        return
    if before.asked and before.asked_at_ms < socket.hello.started_at_ms:  # sent again, it would run a second time
        yield chat.accepted(key, replayed=True)
        yield chat.failed("interrupted", _INTERRUPTED)
        return
    with socket.follow(key) as events:
        params = {"sessionKey": session_key, "message": message, "idempotencyKey": key}
        try:
            acknowledgement = await socket.call("chat.send", params, timeout)
        except GatewayUnavailable as error:
            if error.context["details"]:  # suspended or restarting: the gateway says so in a reason
                raise
            yield chat.accepted(key, replayed=True)
            yield chat.failed("gateway_run_failed", error.message.partition("\n")[0])  # a key whose run failed before
            return
        state = acknowledgement.get("status")
        yield chat.accepted(key, replayed=state != "started")
        if state in ("started", "in_flight"):
            async for event in _follow(socket, events, session_key, key, timeout):
                yield event
        elif state == "timeout":
            yield chat.failed("aborted", "the turn was aborted")
        else:
            yield _ended(await _turn(socket, session_key, key, timeout))


async def _turn(socket: GatewaySocket, session_key: str, key: str, timeout: float) -> Turn:
    history = await socket.call("chat.history", {"sessionKey": session_key, "limit": _HISTORY}, timeout)
    return find_turn(history.get("messages") or (), key)


def _ended(turn: Turn) -> ChatEvent:
    if turn.ending is Ending.FAILED:
        return chat.failed("gateway_run_failed", "the gateway's run failed before it produced an answer")
    if turn.ending is Ending.ABORTED:
        return chat.failed("aborted", "the turn was aborted")
    return chat.final(turn.text, turn.usage, **_steered(turn))


def _steered(turn: Turn) -> dict[str, Any]:
    return {"steered_into": turn.steered_into} if turn.steered_into else {}


async def _follow(
    socket: GatewaySocket, events: asyncio.Queue[dict[str, Any] | None], session_key: str, key: str, timeout: float
) -> AsyncGenerator[ChatEvent]:
    shown = ""
    while (payload := await events.get()) is not None:
        state = payload.get("state")
        if state == "status":
            yield chat.status(str(payload.get("phase", "working")))
        elif state == "delta":
            # Each delta carries the whole text so far: a reader that joined late or lost one catches up by it.
            whole = text_of(payload.get("message"))
            piece = whole[len(shown) :] if whole.startswith(shown) else str(payload.get("deltaText", ""))
            shown = whole or shown + piece
            if piece:
                yield chat.delta(piece)
        elif state == "final":
            yield await _final(socket, payload, shown, session_key, key, timeout)
            return
        elif state == "aborted":
            yield chat.failed("aborted", "the turn was aborted")
            return
        elif state == "error":
            yield chat.failed("gateway_run_failed", str(payload.get("errorMessage") or "the gateway's run failed"))
            return
    yield chat.failed("gateway_connection_lost", _LOST)


async def _final(
    socket: GatewaySocket, payload: dict[str, Any], shown: str, session_key: str, key: str, timeout: float
) -> ChatEvent:
    """The answer with its usage, which only the transcript tells; without it when the transcript cannot be read."""
    text = text_of(payload.get("message")) or shown
    try:
        turn = await _turn(socket, session_key, key, timeout)
    except GatewayRejected:
        return chat.final(text, None)
    if not (text or turn.text or turn.usage or turn.steered_into):
        return chat.failed("no_answer", _NO_ANSWER)  # a final without anything: nothing ends silently
    return chat.final(text or turn.text, turn.usage, **_steered(turn))
