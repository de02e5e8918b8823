"""A subscription that survives the client object under it, and what it hands over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import structlog
from nats import errors as nats_errors  # noqa: TID251 - part of the wrapper's seam

from hatchery_common.bus.client import DirectClient

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
