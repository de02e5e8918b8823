"""One WebSocket to one gateway, protocol 4: handshake, calls by id, and events of runs by subscription."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import urlsplit

from hatchery_common.peers import StrangerAnswers
from hatchery_common.peers import connect as connect_checked
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from hatchery_runtime_proxy.adapters.bounded import Unreadable, parse_object
from hatchery_runtime_proxy.ports import (
    GatewayRefusedIdentity,
    GatewayRejected,
    GatewayTimeout,
    GatewayUnavailable,
    GatewayUnreachable,
    Hello,
)

MAX_FRAME = 26_214_400  # the gateway's own policy.maxPayload
STRANGER = "another program answers in the gateway's place; nothing was sent to it"
_QUEUE = 4096
_RESTARTING = 503
_SCOPES = ["operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.pairing"]
_IDENTITY_CODES = {"NOT_PAIRED", "UNAUTHORIZED"}
_log = logging.getLogger("hatchery.gateway")
_log.setLevel(logging.WARNING)  # at debug level websockets would print the secret header's name


class GatewaySocket:
    """An open, authenticated connection. Events are dropped for nobody: a subscriber that lags is told so and ended."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._pending: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._runs: dict[str, set[asyncio.Queue[dict[str, Any] | None]]] = {}
        self._ids = itertools.count(1)
        self._reader: asyncio.Task[None] | None = None
        self.hello = Hello("", "", (), 0)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._reader is None or self._reader.done()

    @classmethod
    async def open(
        cls, url: str, headers: Mapping[str, str], timeout: float, *, uid: int | None = None
    ) -> GatewaySocket:
        """Connects and says hello within the timeout, with a uid only to that user's program; raises the errors of ports."""
        try:
            async with asyncio.timeout(timeout):
                began = time.monotonic()
                socket = cls(await _connect(url, headers, uid))
                try:
                    await socket._handshake(began)
                except BaseException:
                    await socket.close()
                    raise
                return socket
        except TimeoutError as error:
            raise GatewayTimeout(f"the gateway did not say hello within {timeout:g} s") from error
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise GatewayRefusedIdentity(f"the gateway refused the connection with status {status}") from error
            if status == _RESTARTING:
                raise GatewayUnavailable("the gateway is starting or restarting") from error
            raise GatewayUnreachable(f"the gateway refused the connection with status {status}") from error
        except StrangerAnswers as error:
            raise GatewayUnreachable(STRANGER) from error
        except (OSError, WebSocketException, Unreadable, ValueError, KeyError, TypeError) as error:
            raise GatewayUnreachable(f"no connection to the gateway: {type(error).__name__}") from error

    async def _handshake(self, began: float) -> None:
        challenge = parse_object(await self._connection.recv())
        if challenge.get("event") != "connect.challenge":
            raise GatewayUnreachable("what answers is no gateway: it sent no challenge")
        self._reader = asyncio.create_task(self._read(), name="gateway-socket")
        client = {"id": "gateway-client", "version": "0.1.0", "platform": "linux", "mode": "backend"}
        params = {"minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": _SCOPES, "caps": [], "commands": []}
        payload = await self._request("connect", {**params, "client": client})
        server, snapshot = payload.get("server") or {}, payload.get("snapshot") or {}
        self.hello = Hello(
            version=str(server.get("version", "")),
            boot_id=str(server.get("bootId", "")),
            scopes=tuple((payload.get("auth") or {}).get("scopes") or ()),
            started_at_ms=_latest_start_ms(challenge, snapshot, time.monotonic() - began),
        )

    async def call(self, method: str, params: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The method's payload; raises the errors of ports."""
        try:
            async with asyncio.timeout(timeout):
                return await self._request(method, params)
        except TimeoutError as error:
            raise GatewayTimeout(f"the gateway did not answer {method} within {timeout:g} s") from error

    @contextlib.contextmanager
    def follow(self, run_id: str) -> Generator[asyncio.Queue[dict[str, Any] | None]]:
        """The `chat` events of one run; None says that the connection is gone or the reader fell too far behind."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_QUEUE)
        followers = self._runs.setdefault(run_id, set())
        followers.add(queue)
        try:
            yield queue
        finally:
            followers.discard(queue)
            if not followers:
                self._runs.pop(run_id, None)

    async def close(self) -> None:
        """Closes the connection; safe to repeat."""
        await self._connection.close()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=2)

    async def _request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        request_id = str(next(self._ids))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        frame = {"type": "req", "id": request_id, "method": method, "params": params}
        try:
            await self._connection.send(json.dumps(frame))
            answer = await future
        except ConnectionClosed as error:
            raise GatewayUnreachable(f"the connection broke during {method}") from error
        finally:
            self._pending.pop(request_id, None)
        if answer.get("ok"):
            return answer.get("payload") or {}
        raise _error(method, answer.get("error") or {})

    async def _read(self) -> None:
        try:
            async for raw in self._connection:
                self._dispatch(parse_object(raw))
        except (ConnectionClosed, Unreadable) as error:
            _log.info("the connection ended: %s", type(error).__name__)
        finally:
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(GatewayUnreachable("the connection to the gateway broke"))
            for queue in [queue for queues in self._runs.values() for queue in queues]:
                _end(queue)

    def _dispatch(self, frame: dict[str, Any]) -> None:
        if frame.get("type") == "res":
            future = self._pending.get(str(frame.get("id")))
            if future is not None and not future.done():
                future.set_result(frame)
        elif frame.get("event") == "chat":
            payload = frame.get("payload") or {}
            for queue in self._runs.get(str(payload.get("runId")), ()):
                if queue.qsize() >= _QUEUE - 1:
                    _end(queue)
                else:
                    queue.put_nowait(payload)


async def _connect(url: str, headers: Mapping[str, str], uid: int | None) -> ClientConnection:
    place = urlsplit(url)
    checked = None if uid is None else await connect_checked(place.hostname or "", place.port or 80, uid)
    return await connect(
        url,
        sock=checked,
        additional_headers=dict(headers),
        proxy=None,
        max_size=MAX_FRAME,
        open_timeout=None,
        close_timeout=1,
        ping_interval=20,
        ping_timeout=20,
        logger=_log,
        user_agent_header=None,
    )


def _latest_start_ms(challenge: Mapping[str, Any], snapshot: Mapping[str, Any], passed_s: float) -> int:
    """When the gateway's process started at the latest, by its own clock.

    The challenge bears a time and the hello an uptime, but the hello may come seconds after the challenge when the gateway has
    just started: what has passed since before both is added. Without it an older turn would seem to be one of this process.
    """
    return int(challenge["payload"]["ts"]) + int(passed_s * 1000) + 1 - int(snapshot.get("uptimeMs") or 0)


def _end(queue: asyncio.Queue[dict[str, Any] | None]) -> None:
    with contextlib.suppress(asyncio.QueueFull):
        queue.put_nowait(None)


def _error(method: str, error: Mapping[str, Any]) -> Exception:
    code, message = str(error.get("code", "")), str(error.get("message", ""))
    details: dict[str, Any] = error.get("details") or {}
    context: dict[str, Any] = {"gateway_code": code, "details": details}
    if method == "connect" and (code in _IDENTITY_CODES or message == "unauthorized"):
        return GatewayRefusedIdentity(f"the gateway does not accept our identity: {message}", **context)
    if code == "UNAVAILABLE":
        return GatewayUnavailable(message, **context)
    if code == "FORBIDDEN":
        return GatewayRefusedIdentity(message, **context)
    return GatewayRejected(f"{method}: {message}", **context)
