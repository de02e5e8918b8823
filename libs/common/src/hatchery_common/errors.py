"""The root of every typed error, and what a consumer may do about it.

HatcheryError
├── InvalidInput            the caller must change the request
│   └── BodyTooLarge        an HTTP body over the limit of whoever reads it
├── NotFound                the named thing does not exist for this caller
├── Conflict                the state of the thing forbids it now
├── Refused                 not allowed: identity, rights or policy
├── DependencyUnavailable   NATS, Postgres, a gateway or a machine does not answer: retried without a count
├── OwnershipLost           another process owns this loop now: stop at once
└── SetupError              this process cannot start: names the setting and the remedy
    └── SettingsWrong       a setting or key is missing or wrong, and will be until the process is started anew
Families of a service stand beside the code that raises them and derive from these.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Retry(StrEnum):
    """What the bus does with a message whose handler raised this."""

    NEVER = "never"  # permanent: dead letter now
    BACKOFF = "backoff"  # counted: retried by the back-off list, then dead letter
    DEPENDENCY = "dependency"  # something we lean on is down: retried, never counted


class HatcheryError(Exception):
    """Root of all errors; `code` is stable for programs, the message is for people, `hint` says what to do next."""

    code: ClassVar[str] = "internal"
    retry: ClassVar[Retry] = Retry.BACKOFF

    def __init__(self, message: str, *, hint: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context


class InvalidInput(HatcheryError):
    """The request or message is malformed or out of range."""

    code = "invalid_input"
    retry = Retry.NEVER


class BodyTooLarge(InvalidInput):
    """The body exceeds the limit."""

    code = "body_too_large"


class NotFound(HatcheryError):
    """The named thing does not exist for this caller."""

    code = "not_found"
    retry = Retry.NEVER


class Conflict(HatcheryError):
    """The state of the thing forbids it now."""

    code = "conflict"
    retry = Retry.NEVER


class Refused(HatcheryError):
    """Identity, rights or policy forbid it."""

    code = "refused"
    retry = Retry.NEVER


class DependencyUnavailable(HatcheryError):
    """Something this process leans on does not answer; safe to repeat."""

    code = "dependency_unavailable"
    retry = Retry.DEPENDENCY


class OwnershipLost(HatcheryError):
    """Another process has been elected owner since; nothing of this transaction was kept."""

    code = "ownership_lost"
    retry = Retry.DEPENDENCY


class SetupError(HatcheryError):
    """This process cannot start; the message names the setting, the hint the remedy."""

    code = "setup"
    retry = Retry.NEVER


class SettingsWrong(SetupError):
    """A setting or key is missing or wrong; the message names each variable, never a value."""

    code = "settings"
