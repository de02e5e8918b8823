"""Errors of the bus.

HatcheryError
├── DependencyUnavailable
│   └── BusUnavailable       no server, no leader, no responder or no ack in time: safe to repeat
├── UndeclaredMessage        a service published or called what it did not declare
├── UnreadableMessage        unknown type, broken body, or subject, tenant header and body disagree
├── BusRefused               JetStream answered with an error that repeating will not cure
├── SequenceConflict         a thread's log has moved on: another writer was faster
├── Conflict
│   └── ReplaySkipsUnread    a durable set to that sequence would never read what it has not done yet
└── RemoteError              an rpc was answered by a typed error; `remote_code` names it
"""

from __future__ import annotations

from typing import Any

from hatchery_common.errors import Conflict, DependencyUnavailable, HatcheryError, Retry


class BusUnavailable(DependencyUnavailable):
    """The bus does not answer; publishing again with the same id is safe."""

    code = "bus_unavailable"


class UndeclaredMessage(HatcheryError):
    """The service's declaration does not name this message or rpc."""

    code = "undeclared_message"
    retry = Retry.NEVER


class UnreadableMessage(HatcheryError):
    """What arrived is no message that we know; it goes to the dead letters as it is."""

    code = "unreadable_message"
    retry = Retry.NEVER


class SequenceConflict(HatcheryError):
    """The log's last sequence is not the expected one; fold the log again and decide anew."""

    code = "sequence_conflict"
    retry = Retry.BACKOFF


class ReplaySkipsUnread(Conflict):
    """The durable has not done all that lies before that sequence, and would never read it; the hint says where to start."""

    code = "replay_skips_unread"


class RemoteError(HatcheryError):
    """The other service refused; `remote_code`, message and hint are its own."""

    code = "remote_error"
    retry = Retry.BACKOFF

    def __init__(self, remote_code: str, message: str, *, hint: str | None = None, **context: Any) -> None:
        super().__init__(message, hint=hint, **context)
        self.remote_code = remote_code


class BusRefused(HatcheryError):
    """JetStream answered with an error that repeating will not cure; `err_code` is the server's own number."""

    code = "bus_refused"
    retry = Retry.BACKOFF

    def __init__(self, message: str, *, err_code: int = 0, hint: str | None = None, **context: Any) -> None:
        super().__init__(message, hint=hint, **context)
        self.err_code = err_code
