"""What the agent needs from outside: thread logs, gateways' turns, and rows for threads, leases and runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from hatchery_common.bus import Delivery, LogEntry
from hatchery_common.contracts.threads import (
    CreateThreadRequest,
    ListThreadsRequest,
    ListThreadsResponse,
    SubmitMessageRequest,
    SubmitMessageResponse,
    ThreadEntry,
    ThreadView,
)

from hatchery_agent.domain.decisions import Usage
from hatchery_agent.domain.folding import RunState
from hatchery_agent.domain.recovery import History


class Log(Protocol):
    """A thread's durable log. Every method raises BusUnavailable when the bus does not answer: repeat from the fold."""

    async def append(self, tenant: str, thread_id: str, entries: Sequence[ThreadEntry], *, expected_last: int) -> int:
        """Append all or none; returns the new last sequence; raises SequenceConflict when the log has moved on."""
        ...

    def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[LogEntry]:
        """Entries after a sequence up to the present end, then stops."""
        ...

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        """First and last sequence of this log; (0, 0) when it is empty."""
        ...


@dataclass(frozen=True)
class Session:
    """One OpenClaw session of one instance."""

    tenant: str
    instance_id: str
    key: str


@dataclass(frozen=True)
class Accepted:
    """OpenClaw has the turn, now or since an earlier attempt."""


@dataclass(frozen=True)
class Progress:
    """OpenClaw works on the turn."""

    phase: str


@dataclass(frozen=True)
class Delta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class Final:
    """The whole answer."""

    text: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Steered:
    """The message went into a turn that was running already: that turn answers it."""


@dataclass(frozen=True)
class TurnError:
    """OpenClaw ended the turn with an error."""

    code: str
    message: str
    retryable: bool = True


TurnEvent = Accepted | Progress | Delta | Final | Steered | TurnError


class GatewayNotReady(Exception):
    """The gateway cannot take the turn now; `state` is the instance's, nothing was sent."""

    def __init__(self, state: str, message: str = "", *, refused: bool = False) -> None:
        super().__init__(message or state)
        self.state = state
        self.message = message
        self.refused = refused


class RuntimeTurns(Protocol):
    """Turns of OpenClaw sessions, reached through the runtime-proxy."""

    def send(self, session: Session, message: str, key: str) -> AbstractAsyncContextManager[AsyncGenerator[TurnEvent]]:
        """Send a turn under its key, or take up the turn that this key already has, and stream its events.

        A key never starts a second turn, not even across a restart of the gateway: what a restart interrupted ends as
        TurnError `interrupted`. Raises GatewayNotReady before the turn was taken. The stream just ends, without Final or
        TurnError, when a connection on the way breaks: the turn may go on in OpenClaw.
        """
        ...

    async def abort(self, session: Session, key: str) -> None:
        """End the turn of this key, if it still runs; raises GatewayNotReady."""
        ...

    async def history(self, session: Session) -> History:
        """The session's recent messages; raises GatewayNotReady."""
        ...


class Threads(Protocol):
    """Rows of threads and of submitted messages; a thread of another tenant raises NotFound like one that never was."""

    async def create(self, request: CreateThreadRequest) -> ThreadView:
        """Create the thread, or return the one that the client key names."""
        ...

    async def get(self, tenant: str, thread_id: str) -> ThreadView: ...

    async def list(self, request: ListThreadsRequest) -> ListThreadsResponse: ...

    async def submit(self, request: SubmitMessageRequest) -> SubmitMessageResponse:
        """Store the message and its run, once per run id.

        Raises Conflict when the id names another message, and MessageExpired when the run ended because nobody posted it.
        """
        ...


@dataclass(frozen=True)
class Lease:
    """The right to work on a thread; a later lease has a higher fence."""

    tenant: str
    thread_id: str
    holder: str
    fence: int


@dataclass(frozen=True)
class Held:
    """Somebody else holds the thread for so many seconds more."""

    remaining_s: float


class Leases(Protocol):
    """One lease row per thread; expiry is judged by the database's clock."""

    async def take(self, tenant: str, thread_id: str, holder: str) -> Lease | Held:
        """Take the lease with the next fence, or tell how long another one still lasts; raises NotFound."""
        ...

    async def renew(self, lease: Lease) -> bool:
        """Prolong it; False when another worker has taken it."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give it back, if it is still ours."""
        ...


@dataclass(frozen=True)
class RunRow:
    """A run as its row tells it; `quiet` is a sequence of the log before which no open run exists.

    A parked run is its own job: its command is acknowledged, and whoever finds it due takes it up.
    """

    tenant: str
    thread_id: str
    run_id: str
    instance_id: str
    session_key: str
    message_id: str
    text: str | None
    ended: bool
    quiet: int
    accepted: bool = False  # by the checkpoint: OpenClaw took the turn in some attempt
    parked: bool = False
    due: bool = False
    began_ms: int | None = None  # when a run that was parked began
    woken_at: datetime | None = None  # when its instance last had news
    touched_at: datetime | None = None  # when somebody last did something for it
    cause: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the command that was acknowledged


@dataclass(frozen=True)
class Checkpoint:
    """How far an attempt came: OpenClaw's acceptance and the last sequence of appended text."""

    attempt: int
    accepted: bool
    text_sequence: int


class Runs(Protocol):
    """Rows of runs, the outbox of their facts, and checkpoints; the log stays the truth, rows follow it."""

    async def load(self, tenant: str, run_id: str) -> RunRow:
        """Raises NotFound when this tenant has no such run."""
        ...

    async def queued(self, run_id: str) -> None:
        """The message is in the log now: delete its text row, and touch the run's."""
        ...

    async def started(self, row: RunRow, lease: Lease, attempt: int, *, cause: Delivery[Any] | None) -> None:
        """Record the attempt and its fact; raises LeaseLost when the fence is not ours."""
        ...

    async def checkpoint(self, run_id: str, lease: Lease, point: Checkpoint) -> None:
        """Store the checkpoint; raises LeaseLost when the fence is not ours."""
        ...

    async def settle(
        self, row: RunRow, lease: Lease, run: RunState, *, quiet: int | None, cause: Delivery[Any] | None
    ) -> None:
        """Record the end that the log holds, once, with its fact; `quiet` moves the thread's fold start."""
        ...


class Parking(Protocol):
    """Runs that wait for their instance as rows, without a worker. Raises DependencyUnavailable."""

    async def park(
        self, row: RunRow, lease: Lease, *, began_ms: int, look_s: float, cause: Delivery[Any] | None
    ) -> None:
        """Make the row the run's job, due after `look_s`, at once if news came since `row` was read.

        Raises LeaseLost by the fence, and when the row has ended. The parked runs behind it in its thread become due with it.
        """
        ...

    async def park_behind(self, row: RunRow, lease: Lease, *, cause: Delivery[Any] | None) -> None:
        """Likewise for a run before which another of its thread is parked: it becomes due with that one."""
        ...

    async def wake(self, tenant: str, instance_id: str) -> bool:
        """The instance has news: its parked runs are due now. False when none is parked."""
        ...

    async def due(self, limit: int) -> Sequence[RunRow]:
        """Of each thread that nobody holds the oldest parked run, if one is due; those that are due longest first."""
        ...

    async def next_due_s(self) -> float | None:
        """Seconds until the next parked run becomes due; None when none will."""
        ...

    async def postpone(self, thread_id: str, delay_s: float) -> None:
        """Something failed: nothing of this thread is due before so many seconds."""
        ...


class Housekeeping(Protocol):
    """What the owner of the service looks after."""

    async def find(self, run_id: str) -> RunRow | None:
        """A run of any tenant."""
        ...

    async def orphans(self, older_than_s: int) -> Sequence[RunRow]:
        """Runs whose text was submitted so long ago and whose command never came."""
        ...

    async def stale(self, older_than_s: int) -> Sequence[RunRow]:
        """Runs in the log that are open, not parked, not held and untouched for so long: their command may be lost."""
        ...
