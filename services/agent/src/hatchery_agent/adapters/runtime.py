"""Turns over the runtime-proxy's API: `POST /v1/sessions/{key}/send`, answered as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import quote

import httpx
from hatchery_common.secrets import runtime_service_token

from hatchery_agent.domain.decisions import Usage
from hatchery_agent.domain.recovery import History, PastMessage
from hatchery_agent.ports import (
    Accepted,
    Delta,
    Final,
    GatewayNotReady,
    Progress,
    Session,
    Steered,
    TurnError,
    TurnEvent,
)

_QUIET_S = 120.0  # the proxy sends a comment far more often; longer silence means a dead connection
_BROKEN = frozenset(
    {
        "gateway_connection_lost",
        "gateway_stream_ended",
        "gateway_timeout",
        "gateway_unavailable",
        "gateway_unreachable",
        "first_byte_timeout",
        "stalled",
    }
)
_STATES = {
    "gateway_not_ready": "starting",
    "gateway_starting": "starting",
    "instance_starting": "starting",
    "instance_not_running": "not running",
    "gateway_refused_identity": "unreachable",
    "dependency_unavailable": "unreachable",
    **dict.fromkeys(_BROKEN, "unreachable"),
}
_FINAL_CODES = frozenset({"gateway_rejected"})
_MAX_EVENT = 8 * 1024 * 1024


class _Broken(Exception):
    """The proxy lost the gateway in the middle of a turn."""


class ProxyTurns:
    """RuntimeTurns over HTTP; one client per process."""

    def __init__(self, client: httpx.AsyncClient, base_url: str, key: bytes) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._key = key

    @asynccontextmanager
    async def send(self, session: Session, message: str, key: str) -> AsyncGenerator[AsyncGenerator[TurnEvent]]:
        request = self._client.build_request(
            "POST",
            f"{self._url(session)}/send",
            json={"message": message, "idempotencyKey": key},
            headers={**self._headers(session), "accept": "text/event-stream"},
            timeout=httpx.Timeout(_QUIET_S, connect=5.0),
        )
        response = await self._open(request)
        try:
            yield _events(response)
        finally:
            await response.aclose()

    async def abort(self, session: Session, key: str) -> None:
        request = self._client.build_request(
            "POST", f"{self._url(session)}/abort", json={"runId": key}, headers=self._headers(session), timeout=20.0
        )
        response = await self._open(request)
        await response.aclose()

    async def history(self, session: Session) -> History:
        request = self._client.build_request(
            "GET", f"{self._url(session)}/history", headers=self._headers(session), timeout=20.0
        )
        response = await self._open(request)
        try:
            body: Any = json.loads(await response.aread())
        except (httpx.HTTPError, ValueError) as error:
            raise GatewayNotReady("unreachable", f"the history broke off: {type(error).__name__}") from error
        finally:
            await response.aclose()
        return _history(_mapping(_mapping(body).get("data")))

    async def _open(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise GatewayNotReady("unreachable", f"the runtime API does not answer: {type(error).__name__}") from error
        if response.status_code == 200:
            return response
        try:
            body: Any = json.loads(await response.aread())
        except (httpx.HTTPError, ValueError):
            body = {}
        finally:
            await response.aclose()
        raise _refusal(response.status_code, body)

    def _url(self, session: Session) -> str:
        return f"{self._base}/v1/sessions/{quote(session.key, safe='')}"

    def _headers(self, session: Session) -> dict[str, str]:
        return {
            "x-openagents-service-token": runtime_service_token(self._key, session.tenant),
            "x-oa-tenant-key": session.tenant,
            "x-oa-instance-id": session.instance_id,
        }


def _refusal(status: int, body: Any) -> GatewayNotReady:
    outer = _mapping(body)
    detail = {**outer, **_mapping(outer.get("error_detail"))}
    message = str(outer.get("error") or detail.get("message") or f"HTTP {status}")
    refused = status in (400, 401, 403, 413, 422)
    return GatewayNotReady(_state(detail) or _state_of(status), message, refused=refused)


def _state(detail: Mapping[str, Any]) -> str | None:
    """The instance's state as the proxy names it, else what its error code says about it."""
    state = detail.get("state") or _STATES.get(str(detail.get("code")))
    return str(state) if state else None


def _state_of(status: int) -> str:
    if status == 404:
        return "unknown"
    return "unreachable" if status >= 500 or status == 429 else "not running"


async def _events(response: httpx.Response) -> AsyncGenerator[TurnEvent]:
    """Events until the connection ends, however it ends."""
    accepted = False
    try:
        async for name, data in _sse(response.aiter_lines()):
            event = _event(name, data, accepted=accepted)
            if event is not None:
                accepted = accepted or isinstance(event, Accepted | Delta)
                yield event
    except (httpx.HTTPError, _Broken):
        return  # the reader sees that no end came


async def _sse(lines: AsyncIterator[str]) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    name, data = "message", ""
    async for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += ("\n" if data else "") + line[5:].removeprefix(" ")
        elif not line and data:
            yield name, _parsed(data)
            name, data = "message", ""
        if len(data) > _MAX_EVENT:
            return


def _parsed(data: str) -> dict[str, Any]:
    try:
        return dict(_mapping(json.loads(data)))
    except ValueError:
        raise _Broken from None  # an empty end would pass for an answer


def _event(name: str, data: Mapping[str, Any], *, accepted: bool) -> TurnEvent | None:
    match name:
        case "accepted":
            return Accepted()
        case "status":
            return Progress(str(data.get("phase") or data.get("status") or "working"))
        case "delta":
            return Delta(str(data.get("text") or ""))
        case "final":
            if data.get("steered_into") and not data.get("text"):
                return Steered()
            return Final(str(data.get("text") or ""), _usage(data.get("usage")))
        case "error":
            return _error(data, accepted=accepted)
        case _:
            return None  # additive: newer proxies may say more


def _error(data: Mapping[str, Any], *, accepted: bool) -> TurnError:
    code = str(data.get("code") or "gateway_error")
    message = str(data.get("message") or code)
    state = _state(data)
    if state and not accepted:
        raise GatewayNotReady(state, message)
    if code in _BROKEN:
        raise _Broken
    return TurnError(code, message, bool(data.get("retryable", code not in _FINAL_CODES)))


def _history(data: Mapping[str, Any]) -> History:
    rows = [_mapping(row) for row in cast("Sequence[Any]", data.get("messages") or ())]
    messages = [
        PastMessage(
            role=str(row.get("role")),
            text=str(row.get("text") or ""),
            key=row.get("idempotency_key"),
            stop_reason=row.get("stop_reason"),
            usage=_usage(row.get("usage")),
        )
        for row in rows
    ]
    return History(messages, active=bool(data.get("active")))


def _usage(value: Any) -> Usage:
    found = _mapping(value)
    return Usage(_count(found, "input_tokens", "input"), _count(found, "output_tokens", "output"))


def _count(found: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
