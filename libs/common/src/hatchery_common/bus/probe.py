"""`hatchery doctor`'s look at a service's rights: each one is tried in a way that stores nothing, and one forbidden thing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hatchery_common.bus.authorization import forbidden_probe, rights_of
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.errors import BusUnavailable

if TYPE_CHECKING:
    from hatchery_common.service import Service

_NO_STREAM = {"Nats-Expected-Stream": "HATCHERY_PROBE"}  # the stream refuses what is meant for another one
_TIMEOUT_S = 0.5


@dataclass(frozen=True)
class RightFinding:
    """One right that was tried; `ok` also for the forbidden thing when it was refused."""

    subject: str
    ok: bool
    detail: str


async def probe_rights(url: str, service: Service, seed: str | None, *, timeout_s: float = 5.0) -> list[RightFinding]:
    """Try each right of a service with its own key; raises BusUnavailable or Refused when it cannot connect."""
    connection = Connection(url, service.name, seed)
    await connection.open(timeout_s)
    rights = rights_of(service)
    try:
        found = [await _publish(connection, subject) for subject in rights.publish if _safe(subject)]
        found += [await _subscribe(connection, subject) for subject in rights.subscribe]
        forbidden = forbidden_probe(service)
        refused = await _denied(connection, forbidden)
        detail = "refused, as it should be" if refused else "this service may ask the server what it must not"
        return [*found, RightFinding(forbidden, refused, detail)]
    finally:
        await connection.close()


def _safe(subject: str) -> bool:
    """Asking for messages or acknowledging them would disturb the consumer; requests of an rpc would be answered."""
    return not subject.startswith(("$JS.API.CONSUMER.MSG.NEXT", "$JS.ACK", "$JS.API.DIRECT", "rpc."))


async def _publish(connection: Connection, subject: str) -> RightFinding:
    denied = await _denied(connection, _concrete(subject))
    return RightFinding(_concrete(subject), not denied, "may not publish" if denied else "may publish")


async def _denied(connection: Connection, subject: str) -> bool:
    """Whether the server forbids it: it then says so on the connection and answers nothing."""
    before = connection.violations
    try:
        await connection.request(subject, b"", headers=_NO_STREAM, timeout_s=_TIMEOUT_S)
    except BusUnavailable:
        return connection.violations > before
    return False


async def _subscribe(connection: Connection, subject: str) -> RightFinding:
    before = connection.violations

    async def receive(_: Any) -> None:
        return

    listening = await connection.subscribe(
        subject, receive, queue="hatchery-probe" if subject.startswith("rpc.") else ""
    )
    await connection.flush()
    await asyncio.sleep(0)
    await connection.unsubscribe(listening)
    denied = connection.violations > before
    return RightFinding(subject, not denied, "may not listen" if denied else "may listen")


def _concrete(subject: str) -> str:
    """A subject that matches, of no tenant's."""
    parts = subject.split(".")
    named = ["_probe" if part == ">" or (part == "*" and at > 2) else part for at, part in enumerate(parts)]
    return ".".join("_" if part == "*" else part for part in named)
