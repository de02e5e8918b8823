"""A guard around what runs in a task: a SystemExit there would stop the whole event loop, and every service with it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class ServiceFailed(Exception):
    """A part of a service ended by itself; the service must be restarted."""


async def guarded(work: Awaitable[T], name: str) -> T:
    """The result of the work; a SystemExit inside becomes ServiceFailed, an error of this service alone."""
    try:
        return await work
    except SystemExit as exit_:
        raise ServiceFailed(f"{name} ended the process with SystemExit({exit_.code})") from exit_
