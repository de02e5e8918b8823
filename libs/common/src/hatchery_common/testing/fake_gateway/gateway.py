"""The stand-in itself: its state, its WebSocket conversations and its readiness."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

from hatchery_common.testing.fake_gateway import VERSION
from hatchery_common.testing.fake_gateway.configuration import Configuration
from hatchery_common.testing.fake_gateway.identity import Caller, authenticate
from hatchery_common.testing.fake_gateway.methods import METHODS, MethodError, call
from hatchery_common.testing.fake_gateway.runs import Runs
from hatchery_common.testing.fake_gateway.transcripts import Transcripts, now_ms
from hatchery_common.testing.fake_gateway.wire import MAX_FRAME, Request, Socket

_CLIENTS = [
    "webchat-ui",
    "openclaw-control-ui",
    "openclaw-browser-copilot",
    "openclaw-tui",
    "webchat",
    "cli",
    "gateway-client",
    "openclaw-macos",
    "openclaw-linux",
    "openclaw-ios",
    "openclaw-watchos",
    "openclaw-android",
    "node-host",
    "openclaw-worker",
    "test",
    "fingerprint",
    "openclaw-probe",
]
_EVENTS = ["chat", "agent", "health", "tick", "shutdown", "device.pair.requested", "device.pair.resolved"]


class Gateway:
    """Everything that one gateway process holds."""

    version = VERSION

    def __init__(self, configuration: Configuration, state_dir: Path, *, ready_after_ms: int = 0) -> None:
        self.configuration, self.state_dir = configuration, state_dir
        self.boot_id = str(uuid.uuid4())
        self.transcripts = Transcripts(state_dir)
        self.runs = Runs(configuration, self.transcripts, self.broadcast)
        self.suspension: str | None = None
        self.draining = False
        self._sockets: dict[Socket, Caller] = {}
        self._sequence: dict[Socket, int] = {}
        self._started = time.monotonic()
        self._ready_after = ready_after_ms / 1000

    @property
    def uptime_ms(self) -> int:
        """Milliseconds since this process started to serve."""
        return int((time.monotonic() - self._started) * 1000)

    @property
    def ready(self) -> bool:
        """Whether the sidecars are through."""
        return time.monotonic() - self._started >= self._ready_after

    def broadcast(self, event: str, payload: dict[str, Any]) -> None:
        """Sends an event to every connected operator."""
        for socket, caller in list(self._sockets.items()):
            if caller.allows("operator.read"):
                self._sequence[socket] += 1
                socket.send({"type": "event", "event": event, "payload": payload, "seq": self._sequence[socket]})

    def close_all(self) -> None:
        """Says goodbye as the real gateway does at its end."""
        self.broadcast("shutdown", {"reason": "gateway stopping"})
        for socket in list(self._sockets):
            socket.close(1012, "service restart")

    async def converse(self, request: Request, socket: Socket) -> None:
        """One WebSocket from challenge to close."""
        challenge = {"nonce": str(uuid.uuid4()), "ts": now_ms(), "capabilities": ["model-catalog-snapshot"]}
        socket.send({"type": "event", "event": "connect.challenge", "payload": challenge})
        caller: Caller | None = None
        try:
            async for text in socket.messages():
                frame = _frame(text)
                if frame is None:
                    socket.close(1008, "invalid request frame")
                    return
                if caller is None:
                    caller = self._connect(request, socket, frame)
                    if caller is None:
                        return
                    self._sockets[socket], self._sequence[socket] = caller, 0
                else:
                    socket.send(self._answer(caller, frame))
        finally:
            self._sockets.pop(socket, None)
            self._sequence.pop(socket, None)

    def _answer(self, caller: Caller, frame: dict[str, Any]) -> dict[str, Any]:
        head = {"type": "res", "id": frame["id"]}
        try:
            payload = call(self, caller.allows, frame["method"], frame.get("params") or {})
        except MethodError as error:
            return {**head, "ok": False, "error": _error(error)}
        return {**head, "ok": True, "payload": payload}

    def _connect(self, request: Request, socket: Socket, frame: dict[str, Any]) -> Caller | None:
        head = {"type": "res", "id": frame["id"]}
        try:
            caller = self._admit(request, frame)
        except MethodError as error:
            socket.send({**head, "ok": False, "error": _error(error)})
            socket.close(1008, error.message[:120])
            return None
        socket.send({**head, "ok": True, "payload": self._hello(caller)})
        return caller

    def _admit(self, request: Request, frame: dict[str, Any]) -> Caller:
        params = frame.get("params") or {}
        client = params.get("client") or {}
        if frame["method"] != "connect":
            raise MethodError("INVALID_REQUEST", "invalid handshake: first request must be connect")
        if client.get("id") not in _CLIENTS:
            text = "invalid connect params: at /client/id: must be equal to one of the allowed values"
            raise MethodError("INVALID_REQUEST", text)
        if not params.get("minProtocol", 0) <= 4 <= params.get("maxProtocol", 0):
            raise MethodError(
                "INVALID_REQUEST", "protocol mismatch", {"code": "PROTOCOL_MISMATCH", "expectedProtocol": 4}
            )
        origin = request.headers.get("origin")
        if origin is not None and origin not in self.configuration.allowed_origins:
            text = (
                "origin not allowed (open the Control UI from the gateway host or allow it in "
                "gateway.controlUi.allowedOrigins)"
            )
            details = {"code": "CONTROL_UI_ORIGIN_NOT_ALLOWED", "reason": "origin not allowed"}
            raise MethodError("INVALID_REQUEST", text, details)
        caller, reason = authenticate(self.configuration, request.headers, request.peer)
        if caller is not None:
            return caller
        if params.get("auth") or params.get("device"):
            code = "AUTH_IDENTITY_HEADER_REQUIRED" if "missing_header" in reason else "AUTH_UNAUTHORIZED"
            raise MethodError("INVALID_REQUEST", "unauthorized", {"code": code, "authReason": reason})
        raise MethodError("NOT_PAIRED", "device identity required", {"code": "DEVICE_IDENTITY_REQUIRED"})

    def _hello(self, caller: Caller) -> dict[str, Any]:
        server = {"version": VERSION, "buildId": f"{VERSION}-fake", "bootId": self.boot_id, "connId": str(uuid.uuid4())}
        return {
            "type": "hello-ok",
            "protocol": 4,
            "server": server,
            "features": {"methods": sorted(METHODS), "events": _EVENTS},
            "snapshot": {"suspension": {"phase": "accepting"}, "uptimeMs": self.uptime_ms, "authMode": "trusted-proxy"},
            "auth": {"method": "trusted-proxy", "role": "operator", "scopes": list(caller.scopes)},
            "policy": {"maxPayload": MAX_FRAME, "maxBufferedBytes": 52_428_800, "tickIntervalMs": 30_000},
        }


def _frame(text: str) -> dict[str, Any] | None:
    try:
        frame = json.loads(text)
    except ValueError:
        return None
    valid = isinstance(frame, dict) and frame.get("type") == "req" and "id" in frame and "method" in frame
    return frame if valid else None


def _error(error: MethodError) -> dict[str, Any]:
    answer: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        answer["details"] = error.details
    return answer
