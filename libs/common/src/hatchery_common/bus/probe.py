"""`hatchery doctor`'s look at a service's rights: each one is tried in a way that stores nothing, and one forbidden thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hatchery_common.bus.authorization import forbidden_probe, rights_of
from hatchery_common.bus.connection import Connection

if TYPE_CHECKING:
    from hatchery_common.service import Service

_NO_STREAM = {"Nats-Expected-Stream": "HATCHERY_PROBE"}  # the stream refuses what is meant for another one
# Asking for messages or acknowledging them would take them from the service, reading a log needs a body of its own, and a
# route, even a refused one, is heard by those who listen for routes.
_DISTURBING = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.ACK.", "$JS.API.DIRECT.GET.", "$KV.")


@dataclass(frozen=True)
class RightFinding:
    """One right that was tried; `ok` also for the forbidden thing when it was refused."""

    subject: str
    ok: bool
    detail: str
    forbidden: bool = False


async def probe_rights(url: str, service: Service, seed: str | None, *, timeout_s: float = 5.0) -> list[RightFinding]:
    """Try each right of a service with its own key; raises BusUnavailable or Refused when it cannot connect."""
    connection = Connection(url, service.name, seed)
    await connection.open(timeout_s)
    rights = rights_of(service)
    try:
        found = [await _publish(connection, subject) for subject in rights.publish if _can_be_tried(subject)]
        found += [await _subscribe(connection, subject) for subject in rights.subscribe]
        return [*found, await _forbidden(connection, forbidden_probe(service))]
    finally:
        await connection.close()


def _can_be_tried(subject: str) -> bool:
    return not subject.startswith(_DISTURBING)


async def _publish(connection: Connection, subject: str) -> RightFinding:
    tried = _concrete(subject)
    denied = await _denied(connection, tried)
    return RightFinding(tried, not denied, "may not publish to" if denied else "may publish to")


async def _forbidden(connection: Connection, subject: str) -> RightFinding:
    refused = await _denied(connection, subject)
    detail = "is refused, as it should be," if refused else "must not be allowed to ask"
    return RightFinding(subject, refused, detail, forbidden=True)


async def _denied(connection: Connection, subject: str) -> bool:
    """Whether the server forbids it: it says so on the connection before it answers the ping that follows."""
    before = connection.violations
    await connection.publish(subject, headers=_NO_STREAM, reply=connection.new_inbox())
    await connection.flush()
    return connection.violations > before


async def _subscribe(connection: Connection, subject: str) -> RightFinding:
    async def receive(_: Any) -> None:
        return

    before = connection.violations
    listening = await connection.subscribe(subject, receive)
    await connection.flush()
    await connection.unsubscribe(listening)
    denied = connection.violations > before
    return RightFinding(subject, not denied, "may not listen on" if denied else "may listen on")


def _concrete(subject: str) -> str:
    """A subject that matches, of no tenant's."""
    parts = subject.split(".")
    named = ["_probe" if part == ">" or (part == "*" and at > 2) else part for at, part in enumerate(parts)]
    return ".".join("_" if part == "*" else part for part in named)
