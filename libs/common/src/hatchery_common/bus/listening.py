"""Subscriptions that survive the client object under them, and what they hand over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import structlog
from nats import errors as nats_errors  # noqa: TID251 - part of the wrapper's seam

from hatchery_common.bus.client import DirectClient
from hatchery_common.bus.violations import Violations

log = structlog.get_logger("hatchery.bus")
HIDDEN: Final = (nats_errors.Error, OSError, asyncio.TimeoutError)  # what nats-py raises, and no one above sees


class Raw(Protocol):
    """A message as it came over the wire."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


Receive = Callable[[Any], Awaitable[None]]


class Listening:
    """A subscription that survives the client object under it."""

    def __init__(self, subject: str, queue: str, receive: Receive | None, direct: Callable[[Any], None] | None) -> None:
        self.subject = subject
        self.queue = queue
        self.receive = receive
        self.direct = direct
        self._live: Any = None

    async def attach(self, client: DirectClient) -> None:
        """Subscribe on this client; unlimited pending, since the reader bounds what it asks for."""
        if self.direct is not None:
            self._live = await client.subscribe_directly(self.subject, self.direct)
            return
        self._live = await client.subscribe(
            self.subject, queue=self.queue, cb=self.receive, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def drain(self, timeout_s: float = 2.0) -> None:
        """Stop listening after what is already on its way has been received."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            await asyncio.wait_for(live.drain(), timeout_s)
        except HIDDEN:
            log.debug("bus.listening.drain_incomplete", subject=self.subject)

    async def stop(self) -> None:
        """Stop listening at once."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            await live.unsubscribe()
        except HIDDEN:
            log.debug("bus.listening.already_gone", subject=self.subject)


class Listenings:
    """All subscriptions of one connection, to be made again on another client or after they were refused."""

    def __init__(self, violations: Violations) -> None:
        self._all: list[Listening] = []
        self._violations = violations

    async def add(self, listening: Listening, client: DirectClient) -> None:
        """Subscribe and keep it, unless subscribing fails."""
        self._all.append(listening)
        try:
            await listening.attach(client)
        except HIDDEN:
            self._all.remove(listening)
            raise

    def forget(self, listening: Listening) -> None:
        """It is not wanted any more."""
        if listening in self._all:
            self._all.remove(listening)
            self._violations.forget_subscription(listening.subject)

    async def attach_all(self, client: DirectClient) -> None:
        """Subscribe to all of them on a new client."""
        for listening in list(self._all):
            await listening.attach(client)

    def refused(self) -> list[Listening]:
        """Those that the server does not let us have."""
        return [one for one in self._all if self._violations.refuses_subscription(one.subject)]

    async def ask_again(self, client: DirectClient) -> None:
        """Subscribe anew to what was refused; another refusal is noted like the first, before the answer to the ping."""
        for listening in self.refused():
            self._violations.forget_subscription(listening.subject)
            await listening.stop()
            try:
                await listening.attach(client)
                await asyncio.wait_for(client.flush(), 2)
            except HIDDEN:
                log.debug("bus.listening.not_attached", subject=listening.subject)
