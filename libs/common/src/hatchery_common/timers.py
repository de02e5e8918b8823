"""Waking loops: by an event in the process, else by the next due row; no loop sleeps blindly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Wake:
    """An event that loops wait on with a limit; setting it twice wakes once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake whoever waits, or the next one to wait."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until set or until the time is over; True when it was set. Clears it."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._event.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._event.clear()


async def run_due(work: Callable[[], Awaitable[float | None]], wake: Wake, *, idle_s: float = 30.0) -> None:
    """Run `work` for ever: it handles what is due and returns the seconds until the next due row (None: nothing waits).

    `wake` shortens the wait; `idle_s` bounds it, so a wake that was lost with another process only delays.
    """
    while True:
        next_s = await work()
        await wake.wait(idle_s if next_s is None else min(next_s, idle_s))
