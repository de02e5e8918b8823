"""Small HTTP questions to services on this machine, without an HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from hatchery_cli.embedded.layout import SERVICES, Ports


async def get(port: int, path: str, *, timeout: float = 3.0) -> tuple[int, Any]:
    """Status and JSON body (None when it is no JSON) of a GET on loopback; status 0 when nobody answers in time."""
    try:
        async with asyncio.timeout(timeout):
            return await _get(port, path)
    except (OSError, TimeoutError, ValueError):
        return 0, None


async def _get(port: int, path: str) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


async def readiness(ports: Ports, names: Sequence[str] = SERVICES) -> dict[str, Any]:
    """What each service says about itself; `{"ok": False, ...}` for one that does not answer."""
    answers = await asyncio.gather(*(get(ports.health(name), "/readyz") for name in names))
    silent = {"ok": False, "problems": ["does not answer"]}
    return {name: body if isinstance(body, dict) else silent for name, (_, body) in zip(names, answers, strict=True)}


async def all_ready(ports: Ports, names: Sequence[str] = SERVICES) -> bool:
    """Whether these services are ready."""
    return all(answer.get("ok") for answer in (await readiness(ports, names)).values())


async def problems(ports: Ports, names: Sequence[str] = SERVICES) -> str:
    """What keeps these services from being ready, in one line."""
    answers = await readiness(ports, names)
    return "; ".join(
        f"{name}: {', '.join(str(one) for one in answer.get('problems', []))}"
        for name, answer in answers.items()
        if not answer.get("ok")
    )
