"""Errors of drivers.

HatcheryError
└── DriverError
    ├── DriverPermanent     repeating cannot help: `reason` names it
    ├── DriverTransient     nothing was changed, or repeating is safe: try again later
    ├── DriverCapacity      no room now: port, memory, quota
    │   └── PortTaken       a machine's own port is another program's: only another machine gets another port
    └── DriverAmbiguous     it may or may not have happened: observe before anything else
"""

from __future__ import annotations

from typing import Any

from hatchery_common.errors import HatcheryError, Retry


class DriverError(HatcheryError):
    """Root of what a driver raises; `reason` is a typed code with a remedy."""

    code = "driver"

    def __init__(self, reason: str, message: str, *, hint: str | None = None, **context: Any) -> None:
        super().__init__(message, hint=hint, **context)
        self.reason = str(reason)


class DriverPermanent(DriverError):
    """Repeating cannot help."""

    code = "driver_permanent"
    retry = Retry.NEVER


class DriverTransient(DriverError):
    """Repeating later is safe and may help."""

    code = "driver_transient"


class DriverCapacity(DriverError):
    """There is no room now."""

    code = "driver_capacity"


class PortTaken(DriverCapacity):
    """Another program holds the port that this machine was given."""


class DriverAmbiguous(DriverError):
    """It may or may not have happened: never repeated without a look."""

    code = "driver_ambiguous"
