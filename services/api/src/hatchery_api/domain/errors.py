"""Errors of the website's door.

HatcheryError
├── Refused
│   ├── Unauthenticated       no valid proof of who is asking
│   ├── AccessRequired        the person is not admitted (waitlist, or access withdrawn)
│   └── ForeignOrigin         a cookie request that changes state did not come from our own pages
├── InvalidInput
│   └── IdempotencyMismatch   the key was used with another body
├── NotFound
│   ├── NoUser                nobody of this id was ever seen
│   └── NoInstance            the user has no instance of this name
├── Conflict
│   ├── InstanceDeleting      the instance is being deleted; the operation is named
│   └── ThreadElsewhere       the key's thread is bound to another instance
├── DependencyUnavailable
│   └── RuntimeUnavailable    the runtime API does not answer
└── RemoteError
    └── RuntimeRefused        the runtime API's own typed refusal, passed on
"""

from __future__ import annotations

from hatchery_common.bus.errors import RemoteError
from hatchery_common.errors import Conflict, DependencyUnavailable, InvalidInput, NotFound, Refused, Retry


class Unauthenticated(Refused):
    """No valid proof of who is asking."""

    code = "unauthenticated"


class AccessRequired(Refused):
    """The person is known or not, but not admitted."""

    code = "access_required"


class ForeignOrigin(Refused):
    """A cookie alone does not allow changes from another site's page."""

    code = "foreign_origin"


class IdempotencyMismatch(InvalidInput):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_mismatch"


class NoUser(NotFound):
    """Nobody of this id was ever seen, and this request makes nobody."""

    code = "no_user"


class NoInstance(NotFound):
    """The user has no instance of this name."""

    code = "no_instance"


class InstanceDeleting(Conflict):
    """The instance is being deleted; context names the operation."""

    code = "instance_deleting"


class ThreadElsewhere(Conflict):
    """The key names a thread that is bound to another instance; the message names it."""

    code = "thread_elsewhere"


class RuntimeUnavailable(DependencyUnavailable):
    """The runtime API does not answer in time."""

    code = "runtime_unavailable"


class RuntimeRefused(RemoteError):
    """The runtime API answered with an error of its own; `remote_code` names it."""

    code = "runtime_error"
    retry = Retry.NEVER
