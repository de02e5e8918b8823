"""News of operations within this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from hatchery_common.timers import Wake


class ProcessChanges:
    """Wakes the readers that this process serves; readers elsewhere look again by themselves."""

    def __init__(self) -> None:
        self._watching: dict[str, set[Wake]] = {}

    def notify(self, operation_id: str) -> None:
        """Wake every reader of this operation."""
        for wake in self._watching.get(operation_id, ()):
            wake.set()

    @asynccontextmanager
    async def watch(self, operation_id: str) -> AsyncGenerator[Wake]:
        """A place among the operation's readers."""
        wake = Wake()
        readers = self._watching.setdefault(operation_id, set())
        readers.add(wake)
        try:
            yield wake
        finally:
            readers.discard(wake)
            if not readers:
                self._watching.pop(operation_id, None)
