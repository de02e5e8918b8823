"""The WebSocket methods that the stand-in knows: each names the scope it needs and checks its parameters."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hatchery_common.testing.fake_gateway.runs import RequestConflict, RunFailed
from hatchery_common.testing.fake_gateway.transcripts import listing, now_ms

if TYPE_CHECKING:
    from hatchery_common.testing.fake_gateway.gateway import Gateway

_CONFLICT = (
    "This message ID was already used for different input. "
    "Check the conversation history and use a new message ID to send again."
)


class MethodError(Exception):
    """What a method answers with `ok: false`."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


@dataclass(frozen=True)
class Method:
    """A method's scope, required parameters and function."""

    scope: str
    required: tuple[str, ...]
    run: Callable[[Gateway, dict[str, Any]], dict[str, Any]]


def _health(gateway: Gateway, _params: dict[str, Any]) -> dict[str, Any]:
    return {
        "ok": True,
        "ts": now_ms(),
        "durationMs": 1,
        "channels": {},
        "heartbeatSeconds": 0,
        "defaultAgentId": "main",
    }


def _status(gateway: Gateway, _params: dict[str, Any]) -> dict[str, Any]:
    return {"runtimeVersion": gateway.version, "sessions": {"count": len(gateway.transcripts.names())}}


def _sessions_list(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    keys = gateway.transcripts.names()
    limit = int(params.get("limit", 100))
    rows = [listing(gateway.transcripts, key) for key in keys[:limit]]
    counts = {"count": len(rows), "totalCount": len(keys), "limitApplied": limit, "hasMore": len(keys) > limit}
    return {"ts": now_ms(), **counts, "sessions": rows}


def _chat_send(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    if gateway.draining:
        details = {"method": "chat.send", "reason": "gateway-restarting", "phase": "accepting"}
        raise MethodError("UNAVAILABLE", "chat.send unavailable during gateway restart", details)
    try:
        return gateway.runs.send(params["sessionKey"], params["message"], params["idempotencyKey"])
    except RequestConflict:
        raise MethodError("INVALID_REQUEST", _CONFLICT, {"reason": "chat-request-conflict"}) from None
    except RunFailed as error:
        raise MethodError("UNAVAILABLE", str(error)) from None


def _chat_history(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    key = params["sessionKey"]
    messages = gateway.transcripts.messages(key)
    limit = int(params.get("limit", 200))
    return {
        "sessionKey": key,
        "sessionId": (gateway.transcripts.session(key) or {}).get("sessionId"),
        "messages": messages[-limit:],
        "pendingInputs": gateway.runs.pending_inputs(key),
        "hasMore": len(messages) > limit,
        "totalMessages": len(messages),
        "sessionInfo": listing(gateway.transcripts, key),
    }


def _chat_abort(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    ended = gateway.runs.abort(params["sessionKey"], params.get("runId"))
    return {"ok": True, "aborted": bool(ended), "runIds": ended}


def _devices(gateway: Gateway) -> dict[str, list[dict[str, Any]]]:
    path = gateway.state_dir / "fake-devices.json"
    return json.loads(path.read_text()) if path.is_file() else {"pending": [], "paired": []}


def _device_list(gateway: Gateway, _params: dict[str, Any]) -> dict[str, Any]:
    return dict(_devices(gateway))


def _decide(gateway: Gateway, params: dict[str, Any], decision: str) -> dict[str, Any]:
    devices = _devices(gateway)
    found = next((row for row in devices["pending"] if row["requestId"] == params["requestId"]), None)
    if found is None:
        raise MethodError("INVALID_REQUEST", "unknown requestId")
    devices["pending"].remove(found)
    if decision == "approved":
        devices["paired"].append({**found, "approvedVia": "owner"})
    (gateway.state_dir / "fake-devices.json").write_text(json.dumps(devices))
    resolved = {"requestId": found["requestId"], "deviceId": found["deviceId"], "decision": decision, "ts": now_ms()}
    gateway.broadcast("device.pair.resolved", resolved)
    if decision == "approved":
        return {"requestId": found["requestId"], "device": found}
    return {"requestId": found["requestId"], "deviceId": found["deviceId"]}


def _pairings(gateway: Gateway) -> list[dict[str, Any]]:
    path = gateway.state_dir / "fake-pairings.json"
    return json.loads(path.read_text()) if path.is_file() else []


def _pairing_list(gateway: Gateway, _params: dict[str, Any]) -> dict[str, Any]:
    limits = {"pendingPerAccount": 3, "ttlMs": 3_600_000}
    return {"accounts": [], "requests": _pairings(gateway), "commandOwnerConfigured": False, "limits": limits}


def _pairing_approve(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    rows = _pairings(gateway)
    found = next((row for row in rows if row["requestId"] == params["requestId"]), None)
    if found is None:
        raise MethodError("INVALID_REQUEST", "pairing request not found")
    rows.remove(found)
    (gateway.state_dir / "fake-pairings.json").write_text(json.dumps(rows))
    return {"ok": True, "requestId": found["requestId"], "channel": found["channel"]}


def _suspend(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    if gateway.runs.active and not params.get("drain"):
        return {"status": "busy", "blockers": [{"kind": "run", "count": len(gateway.runs.active)}]}
    gateway.suspension = str(uuid.uuid4())
    gateway.broadcast("gateway.suspension", {"phase": "prepared"})
    expires = {"expiresAtMs": now_ms() + 120_000, "activeCount": 0, "blockers": []}
    return {"status": "ready", "suspensionId": gateway.suspension, **expires}


def _resume(gateway: Gateway, params: dict[str, Any]) -> dict[str, Any]:
    if params["suspensionId"] != gateway.suspension:
        raise MethodError("INVALID_REQUEST", "unknown suspensionId")
    gateway.suspension = None
    return {"ok": True, "status": "running", "resumed": True}


METHODS: dict[str, Method] = {
    "health": Method("operator.read", (), _health),
    "status": Method("operator.read", (), _status),
    "sessions.list": Method("operator.read", (), _sessions_list),
    "chat.send": Method("operator.write", ("sessionKey", "message", "idempotencyKey"), _chat_send),
    "chat.history": Method("operator.read", ("sessionKey",), _chat_history),
    "chat.abort": Method("operator.write", ("sessionKey",), _chat_abort),
    "device.pair.list": Method("operator.pairing", (), _device_list),
    "device.pair.approve": Method("operator.pairing", ("requestId",), lambda g, p: _decide(g, p, "approved")),
    "device.pair.reject": Method("operator.pairing", ("requestId",), lambda g, p: _decide(g, p, "rejected")),
    "channels.pairing.list": Method("operator.pairing", (), _pairing_list),
    "channels.pairing.approve": Method("operator.pairing", ("channel", "accountId", "requestId"), _pairing_approve),
    "gateway.suspend.prepare": Method("operator.admin", ("requestId",), _suspend),
    "gateway.suspend.resume": Method("operator.admin", ("suspensionId",), _resume),
}
_UNSUSPENDABLE = ("gateway.suspend.prepare", "gateway.suspend.resume")


def call(gateway: Gateway, scopes_allow: Callable[[str], bool], name: str, params: dict[str, Any]) -> dict[str, Any]:
    """The method's payload; raises MethodError with the real gateway's code and text."""
    method = METHODS.get(name)
    if method is None:
        raise MethodError("INVALID_REQUEST", f"unknown method: {name}")
    if not scopes_allow(method.scope):
        details = {"code": "MISSING_SCOPE", "missingScope": method.scope, "requiredScopes": [method.scope]}
        raise MethodError("FORBIDDEN", f"missing scope: {method.scope}", details)
    if gateway.suspension is not None and name not in _UNSUSPENDABLE:
        details = {"method": name, "reason": "gateway-suspending", "phase": "prepared"}
        raise MethodError("UNAVAILABLE", f"{name} unavailable during gateway suspension", details)
    for required in method.required:
        if required not in params:
            text = f"invalid {name} params: must have required property '{required}'"
            raise MethodError("INVALID_REQUEST", text)
    return method.run(gateway, params)
