"""Asks the gateway over its WebSocket (protocol 4) to close its doors before it is stopped."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

from hatchery_controller.adapters.websocket import WebSocket
from hatchery_controller.domain.template import CONTROLLER_SCOPES, controller_identity

if TYPE_CHECKING:
    from hatchery_controller.domain.bundle import Bundle

# The gateway refuses a forwarded address that is itself a proxy's, so ours is one that no host has (RFC 5737).
_CLIENT = "192.0.2.1"


class GatewaySuspend:
    """The Suspend port, under the controller's own identity; possible only where the gateway trusts loopback."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host

    async def __call__(self, bundle: Bundle, timeout: float) -> str:
        if not bundle.gateway.allow_loopback:
            return "not asked: this gateway does not trust loopback"
        try:
            async with asyncio.timeout(timeout):
                return await self._ask(bundle)
        except TimeoutError:
            return "no answer"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"failed: {error}"

    async def _ask(self, bundle: Bundle) -> str:
        headers = dict.fromkeys(bundle.gateway.required_headers, "http")
        headers |= {"x-forwarded-for": _CLIENT, "x-forwarded-proto": "http"}
        headers[bundle.gateway.user_header] = controller_identity(bundle.machine_id)
        socket = await WebSocket.connect(self._host, bundle.gateway.port, headers)
        try:
            client = {"id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend"}
            scopes = list(CONTROLLER_SCOPES)
            hello = {"minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": scopes, "client": client}
            await _call(socket, "connect", {**hello, "caps": [], "commands": []})
            told = await _call(socket, "gateway.suspend.prepare", {"requestId": bundle.machine_id, "drain": True})
            return str(told.get("status", "unknown"))
        finally:
            socket.close()


async def _call(socket: WebSocket, method: str, params: dict[str, Any]) -> dict[str, Any]:
    await socket.send(json.dumps({"type": "req", "id": method, "method": method, "params": params}))
    while True:
        message = json.loads(await socket.receive())
        if message.get("type") == "res" and message.get("id") == method:
            if message.get("ok") is not True:
                raise ValueError(f"{method}: {message.get('error', {}).get('message', 'refused')}")
            return cast("dict[str, Any]", message.get("payload") or {})
