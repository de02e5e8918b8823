"""The watchdog of a stream: when to show a sign of life, and when silence has become an error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class StreamLimits:
    """Seconds of silence that a stream may keep."""

    status_s: float = 1.0  # then the reader gets a status event
    keepalive_s: float = 15.0  # and again as often as this
    first_byte_s: float = 30.0  # nothing at all from the gateway: an error
    idle_s: float = 180.0  # nothing more from the gateway: an error


class Due(StrEnum):
    """What a watchdog asks for."""

    STATUS = "status"
    FIRST_BYTE = "first_byte_timeout"
    IDLE = "stalled"


class Watchdog:
    """Follows one stream by the times that it is told."""

    def __init__(self, limits: StreamLimits, now: float) -> None:
        self._limits = limits
        self._heard_at = now
        self._status_at = now + limits.status_s
        self._any = False

    def heard(self, now: float) -> None:
        """The gateway sent something."""
        self._any = True
        self._heard_at = now
        self._status_at = now + self._limits.keepalive_s

    def told(self, now: float) -> None:
        """The reader got a status event."""
        self._status_at = now + self._limits.keepalive_s

    def wait_s(self, now: float) -> float:
        """How long nothing is due."""
        return max(0.0, min(self._status_at, self._deadline()) - now)

    def due(self, now: float) -> Due | None:
        """What is due now; an error goes before a status."""
        if now >= self._deadline():
            return Due.IDLE if self._any else Due.FIRST_BYTE
        return Due.STATUS if now >= self._status_at else None

    def _deadline(self) -> float:
        return self._heard_at + (self._limits.idle_s if self._any else self._limits.first_byte_s)
