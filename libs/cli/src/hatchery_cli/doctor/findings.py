"""A finding: a stable code, how bad it is, what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"  # optional, nothing is wrong
    WARNING = "warning"  # works, but not for long or not well
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    code: str
    level: Level
    text: str
    remedy: str | None = None


Check = Callable[[], Finding]


def ok(code: str, text: str) -> Finding:
    """All is well."""
    return Finding(code, Level.OK, text)


def note(code: str, text: str, remedy: str) -> Finding:
    """Optional."""
    return Finding(code, Level.NOTE, text, remedy)


def warning(code: str, text: str, remedy: str) -> Finding:
    """Works, but not for long or not well."""
    return Finding(code, Level.WARNING, text, remedy)


def error(code: str, text: str, remedy: str) -> Finding:
    """Does not work."""
    return Finding(code, Level.ERROR, text, remedy)
