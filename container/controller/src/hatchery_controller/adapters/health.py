"""Asks a gateway on loopback how it is: /health first, then /ready."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple, cast

import h11

from hatchery_controller.domain.ladder import Probe

_MAX_BODY = 64 * 1024


class Answer(NamedTuple):
    """Status and body of one HTTP answer."""

    status: int
    body: bytes


class HttpHealth:
    """The Health port over HTTP."""

    def __init__(self, timeout: float, host: str = "127.0.0.1") -> None:
        self._timeout = timeout
        self._host = host

    async def __call__(self, port: int) -> Probe:
        health = await self._get(port, "/health")
        if isinstance(health, str) or health.status != 200:
            return Probe(live=False, ready=False, detail=_problem("/health", health))
        ready = await self._get(port, "/ready")
        if isinstance(ready, str) or ready.status != 200:
            return Probe(live=True, ready=False, detail=_problem("/ready", ready))
        return Probe(live=True, ready=True)

    async def _get(self, port: int, path: str) -> Answer | str:
        try:
            async with asyncio.timeout(self._timeout):
                return await _request(self._host, port, path)
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except OSError as error:
            return error.strerror or "no connection"
        except h11.RemoteProtocolError:
            return "an answer that is not HTTP"


async def _request(host: str, port: int, path: str) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", f"{host}:{port}"), ("Connection", "close")]
        writer.write(connection.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        status, body = 0, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _MAX_BODY:
                    raise h11.RemoteProtocolError("body too large")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, bytes(body))
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("closed early")
    finally:
        writer.close()


def _problem(path: str, answer: Answer | str) -> str:
    if isinstance(answer, str):
        return f"{path}: {answer}"
    try:
        told: object = json.loads(answer.body)
    except ValueError:
        told = None
    failing = cast("dict[str, Any]", told).get("failing") if isinstance(told, dict) else None
    shown = f", failing: {failing}" if failing else ""
    return f"{path}: status {answer.status}{shown}"[:300]
