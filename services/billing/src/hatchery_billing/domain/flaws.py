"""Values that 64-bit integers and Postgres texts cannot hold: such an event is refused, it may not stop the batch."""

from __future__ import annotations

from hatchery_common.contracts.base import Event

MOST = 10**9  # seconds of one boot, tokens of one call
MOST_MICRO = 10**15
LATEST_MS = 10**14
LONGEST_TEXT = 512


def flaw(event: Event) -> str | None:
    """What is wrong with the event's values, in one sentence without the value; None when they fit."""
    for name, value in event:
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and not 0 <= value <= _limit(name):
            return f"{name} is out of range"
        if isinstance(value, str) and (len(value) > LONGEST_TEXT or "\0" in value):
            return f"{name} is too long or holds a NUL"
    return None


def _limit(name: str) -> int:
    if name.endswith("_ms"):
        return LATEST_MS
    return MOST_MICRO if name.endswith("_micro") else MOST
