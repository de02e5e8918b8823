"""Suspects: messages delivered too often without an end are handled one at a time, so that a death during it is their own.

JetStream counts every delivery: those that ended with the process too, whether another message killed it or an operator
restarted it. The count alone would condemn the innocent beside the guilty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog

from hatchery_common.errors import DependencyUnavailable

log = structlog.get_logger("hatchery.bus")
LIVES: Final = 3  # so many deaths during its own handling prove a message guilty


class Quarantine(Protocol):
    """Remembers over deaths of the process whose handling began and did not end; raises DependencyUnavailable."""

    async def enter(self, message_id: str) -> int:
        """Record that its handling begins; how often it has begun without an end, this time included."""
        ...

    async def leave(self, message_id: str) -> None:
        """Forget it: its handling ended, well or not. Safe to repeat."""
        ...


class Trial:
    """Handles the suspects of one service, one after the other, whichever durable they come from."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._alone = asyncio.Lock()
        self._ended: set[str] = set()  # whose end in this life could not be written yet

    @property
    def is_busy(self) -> bool:
        """Whether a suspect is being handled; the next one waits outside, where it holds up nobody."""
        return self._alone.locked()

    @asynccontextmanager
    async def of(self, message_id: str) -> AsyncGenerator[bool]:
        """The block handles the message if it gets True; False means that it has killed its process LIVES times."""
        async with self._alone:
            if message_id in self._ended:  # an outage during its handling is no death
                await self._quarantine.leave(message_id)
                self._ended.discard(message_id)
            begun = await self._quarantine.enter(message_id)
            try:
                yield begun <= LIVES
            finally:
                await self._leave(message_id)

    async def _leave(self, message_id: str) -> None:
        try:
            await self._quarantine.leave(message_id)
        except DependencyUnavailable as error:
            self._ended.add(message_id)
            log.warning("bus.quarantine_not_left", message_id=message_id, error=error.message)
