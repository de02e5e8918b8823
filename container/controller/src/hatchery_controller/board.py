"""The state that everybody may look at and wait on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatchery_controller.domain.ladder import Ladder, State


class Board:
    """Shows the ladder's state; `publish` after each step wakes those who wait for a new revision."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.machine_id: str | None = None
        self.ignored_overrides: list[str] = []
        self._shown = ladder.state.revision
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        return self.ladder.state

    def publish(self) -> None:
        if self.state.revision != self._shown:
            self._shown = self.state.revision
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait_beyond(self, revision: int, timeout: float) -> None:
        """Returns when the state's revision differs from this one, at the latest after the timeout."""
        try:
            async with asyncio.timeout(timeout):
                while self.state.revision == revision:
                    await self._changed.wait()
        except TimeoutError:
            pass
