"""Errors of the agent service.

HatcheryError
├── Conflict
│   └── MessageExpired  the run ended unanswered, since nobody posted its message in time
└── DependencyUnavailable
    ├── ThreadBusy      another worker holds the thread's lease: wait, uncounted
    └── LeaseLost       another worker has taken over: stop at once, the fold decides anew
"""

from __future__ import annotations

from hatchery_common.errors import Conflict, DependencyUnavailable


class MessageExpired(Conflict):
    """The run has ended, because its message was stored and not posted in time; it will not be answered."""

    code = "message_expired"


class ThreadBusy(DependencyUnavailable):
    """Another worker holds the thread."""

    code = "thread_busy"


class LeaseLost(DependencyUnavailable):
    """The lease went to another worker; nothing more may be written by this one."""

    code = "lease_lost"
