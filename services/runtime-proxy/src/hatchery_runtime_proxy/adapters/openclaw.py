"""OpenClaw gateways in trusted-proxy mode: HTTP and WebSocket under the machine's secret identity header."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from hatchery_common.peers import StrangerAnswers, before_sending
from hatchery_common.secrets import machine_header_name, owner_identity, service_identity

from hatchery_runtime_proxy.adapters.bounded import Unreadable, parse, read_bytes
from hatchery_runtime_proxy.adapters.openclaw_chat import converse
from hatchery_runtime_proxy.adapters.openclaw_socket import MAX_FRAME, STRANGER, GatewaySocket
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.ports import (
    Answer,
    ByteStream,
    GatewayConnectionLost,
    GatewayRefusedIdentity,
    GatewayTimeout,
    GatewayUnreachable,
    Hello,
    Identity,
    Machine,
)

# The gateway demands a client address that is not loopback; our own calls have none, so they carry one of TEST-NET-1.
_CLIENT_ADDRESS = "192.0.2.1"


class OpenClawGateways:
    """The port `Gateways` over httpx and websockets; connections are kept for each (machine, identity)."""

    def __init__(
        self,
        identity_key: bytes,
        *,
        timeout_s: float = 15.0,
        hello_timeout_s: float = 5.0,
        tool_timeout_s: float = 120.0,
    ) -> None:
        self._key, self._timeout, self._hello_timeout = identity_key, timeout_s, hello_timeout_s
        self._tool_timeout = tool_timeout_s
        self._sockets: dict[tuple[str, Identity], GatewaySocket] = {}
        self._locks: dict[tuple[str, Identity], asyncio.Lock] = {}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(trust_env=False, timeout=timeout_s, limits=limits)

    async def close(self) -> None:
        """Closes every connection."""
        for socket in self._sockets.values():
            await socket.close()
        self._sockets.clear()
        await self._http.aclose()

    async def drop(self, machine_id: str) -> None:
        """Closes the connections to a machine whose route is no longer open."""
        places = [place for place in self._sockets if place[0] == machine_id]
        sockets = [self._sockets.pop(place) for place in places]  # at once: two may drop the same machine
        for place, socket in zip(places, sockets, strict=True):
            self._locks.pop(place, None)
            await socket.close()

    async def ready(self, machine: Machine) -> bool:
        """Whether `/ready` answers 200 under the service's identity; its body, which may never end, is not read."""
        headers, checked = self._headers(machine, Identity.SERVICE), before_sending(machine.endpoint_uid)
        url, limit_s = f"{machine.endpoint}/ready", self._hello_timeout
        try:
            async with (
                asyncio.timeout(limit_s),
                self._http.stream("GET", url, headers=headers, extensions=checked) as answer,
            ):
                return answer.is_success
        except StrangerAnswers as error:
            raise GatewayUnreachable(STRANGER) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise GatewayTimeout("the gateway did not answer /ready in time") from error
        except httpx.HTTPError as error:
            raise GatewayUnreachable(f"nothing answers /ready: {type(error).__name__}") from error

    async def hello(self, machine: Machine, identity: Identity) -> Hello:
        """A fresh connection, closed again."""
        socket = await self._open(machine, identity, self._hello_timeout)
        await socket.close()
        return socket.hello

    async def call(
        self, machine: Machine, method: str, params: Mapping[str, Any], identity: Identity = Identity.OWNER
    ) -> dict[str, Any]:
        """A method's payload over the kept connection."""
        socket = await self._socket(machine, identity)
        return await socket.call(method, params, self._timeout)

    async def chat(
        self, machine: Machine, session_key: str, message: str, idempotency_key: str
    ) -> AsyncGenerator[ChatEvent]:
        """One turn as the owner; a kept connection that turns out to be broken is replaced once, the key makes that safe."""
        for last in (False, True):
            socket = await self._socket(machine, Identity.OWNER)
            begun = False
            try:
                async for event in converse(socket, session_key, message, idempotency_key, self._timeout):
                    begun = True
                    yield event
            except GatewayUnreachable:
                if begun or last:
                    raise
            else:
                return

    async def post(self, machine: Machine, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        """A POST as the owner, answered whole; a body that is no JSON is returned as text."""
        sent = {**headers, **self._headers(machine, Identity.OWNER)}
        url = f"{machine.endpoint}{path}"
        checked = before_sending(machine.endpoint_uid)
        try:
            async with (
                asyncio.timeout(
                    self._tool_timeout
                ),  # httpx counts each read alone: a machine may say a byte now and then
                self._http.stream(
                    "POST", url, json=body, headers=sent, timeout=self._tool_timeout, extensions=checked
                ) as answer,
            ):
                _refuse_identity_errors(answer.status_code)
                read = await read_bytes(answer, MAX_FRAME)
        except StrangerAnswers as error:
            raise GatewayUnreachable(STRANGER) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise GatewayTimeout(f"the gateway did not answer {path} in time") from error
        except (httpx.HTTPError, Unreadable) as error:
            raise GatewayUnreachable(f"no answer from {path}: {type(error).__name__}") from error
        try:
            return Answer(answer.status_code, parse(read))
        except Unreadable:
            return Answer(answer.status_code, read.decode(errors="replace"))

    @asynccontextmanager
    async def stream(
        self, machine: Machine, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncGenerator[ByteStream]:
        """A POST as the owner whose answer streams; it has no total deadline, the caller's watchdog has."""
        plain = {"content-type": "application/json", "accept-encoding": "identity"}
        sent = {**plain, **headers, **self._headers(machine, Identity.OWNER)}
        limits, checked = httpx.Timeout(self._timeout, read=None), before_sending(machine.endpoint_uid)
        try:
            async with self._http.stream(
                "POST", f"{machine.endpoint}{path}", content=body, headers=sent, timeout=limits, extensions=checked
            ) as answer:
                _refuse_identity_errors(answer.status_code)
                yield ByteStream(answer.status_code, answer.headers.get("content-type", ""), _pieces(answer, path))
        except StrangerAnswers as error:
            raise GatewayUnreachable(STRANGER) from error
        except httpx.TimeoutException as error:
            raise GatewayTimeout(f"the gateway did not answer {path} in time") from error
        except httpx.HTTPError as error:
            raise GatewayUnreachable(f"the stream of {path} broke: {type(error).__name__}") from error

    def _headers(self, machine: Machine, identity: Identity) -> dict[str, str]:
        name = machine_header_name(self._key, machine.machine_id)
        who = owner_identity if identity is Identity.OWNER else service_identity
        return {"x-forwarded-for": _CLIENT_ADDRESS, "x-forwarded-proto": "http", name: who(machine.machine_id)}

    async def _open(self, machine: Machine, identity: Identity, timeout: float) -> GatewaySocket:
        url = machine.endpoint.replace("http", "ws", 1)
        return await GatewaySocket.open(url, self._headers(machine, identity), timeout, uid=machine.endpoint_uid)

    async def _socket(self, machine: Machine, identity: Identity) -> GatewaySocket:
        place = (machine.machine_id, identity)
        async with self._locks.setdefault(place, asyncio.Lock()):
            socket = self._sockets.get(place)
            if socket is None or socket.closed:
                socket = await self._open(machine, identity, self._timeout)
                self._sockets[place] = socket
            return socket


async def _pieces(answer: httpx.Response, path: str) -> AsyncGenerator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        raise GatewayConnectionLost(f"the answer to {path} broke off: {type(error).__name__}") from error


def _refuse_identity_errors(status: int) -> None:
    if status in (401, 403):
        raise GatewayRefusedIdentity(f"the gateway refused our identity with status {status}")
