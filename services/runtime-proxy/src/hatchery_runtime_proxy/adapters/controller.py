"""The HTTP API of machines' controllers, under the machine's own token."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from hatchery_common.errors import Conflict
from hatchery_common.peers import StrangerAnswers, before_sending
from hatchery_common.secrets import controller_token

from hatchery_runtime_proxy.adapters.bounded import Unreadable, parse_object, read_bytes
from hatchery_runtime_proxy.ports import ControllerUnreachable, Machine

_MOST_BYTES = 1_048_576


class HttpControllers:
    """The port `Controllers` over httpx."""

    def __init__(self, key: bytes, timeout_s: float = 5.0) -> None:
        self._key, self._timeout = key, timeout_s
        self._http = httpx.AsyncClient(trust_env=False, timeout=timeout_s)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def restart_gateway(self, machine: Machine, reason: str) -> dict[str, Any]:
        """Asks for a restart of the gateway; raises Conflict when the machine is being stopped."""
        return await self._send("POST", machine, "/v1/gateway/restart", {"reason": reason})

    async def state(self, machine: Machine) -> dict[str, Any]:
        """What the controller says of its gateway: shown, never trusted."""
        return await self._send("GET", machine, "/v1/state", None)

    async def _send(self, method: str, machine: Machine, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        if machine.controller is None:
            raise ControllerUnreachable("this machine has no controller")
        headers = {"authorization": f"Bearer {controller_token(self._key, machine.machine_id)}"}
        url = f"{machine.controller}{path}"
        checked = before_sending(machine.controller_uid)
        try:
            async with (
                asyncio.timeout(self._timeout),  # of the whole: httpx counts each read alone
                self._http.stream(method, url, json=body, headers=headers, extensions=checked) as answer,
            ):
                read = await read_bytes(answer, _MOST_BYTES)
        except StrangerAnswers as error:
            raise ControllerUnreachable("another program answers in the controller's place") from error
        except (TimeoutError, httpx.HTTPError, Unreadable) as error:
            raise ControllerUnreachable(f"the controller does not answer: {type(error).__name__}") from error
        if answer.status_code == 409:
            raise Conflict("this machine is being stopped")
        if not answer.is_success:
            raise ControllerUnreachable(f"the controller answered {path} with status {answer.status_code}")
        try:
            return parse_object(read)
        except Unreadable as error:
            raise ControllerUnreachable(f"the controller's answer to {path} is unreadable") from error
