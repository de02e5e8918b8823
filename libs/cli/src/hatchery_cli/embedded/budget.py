"""One span of time, shared out to steps that follow each other."""

from __future__ import annotations

import time
from collections.abc import Callable

_LEAST_S = 0.2


class Budget:
    """The seconds that remain of a whole."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds

    def share(self, wanted_s: float, *, keep_s: float = 0.0) -> float:
        """What a step may take: what it wants, as far as that leaves `keep_s` for the steps after it."""
        return max(_LEAST_S, min(wanted_s, self._end - self._now() - keep_s))
