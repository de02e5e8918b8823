"""What the api needs from outside, in its own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hatchery_common.bus.delivery import Delivery
from hatchery_common.contracts.base import Message, Rpc
from hatchery_common.contracts.instances import InstanceState
from hatchery_common.contracts.threads import ThreadEntry
from pydantic import BaseModel

from hatchery_api.domain.identity import Proof, User
from hatchery_api.domain.instances import Claim
from hatchery_api.domain.operations import Operation, OperationEvent

Q = TypeVar("Q", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An Idempotency-Key where it counts: for one tenant and route, bound to the hash of one body."""

    tenant: str
    route: str
    key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a key stands for: the body's hash and the ids of what the first request made (None: not settled)."""

    body_hash: str
    refs: dict[str, str | None] | None


@dataclass(frozen=True, slots=True)
class Run:
    """One answer to one message, as far as the api knows it."""

    run_id: str
    tenant: str
    thread_id: str
    instance_id: str
    status: str
    attempt: int
    created_ms: int
    updated_ms: int
    code: str | None = None


class Users(Protocol):
    """Users and their mapping to tenants."""

    async def find(self, user_id: str) -> User | None: ...

    async def add(self, user: User) -> bool:
        """False when another request was faster."""
        ...

    async def adopt_pepper(self, user_id: str, pepper: str) -> None:
        """Set the pepper of a user who never had one."""
        ...

    async def set_pepper(self, user_id: str, pepper: str) -> None:
        """Set the pepper of a known user: tokens with another one are revoked from now on."""
        ...


class Claims(Protocol):
    """Claims on instance names."""

    async def find(self, tenant: str, name: str) -> Claim | None: ...

    async def all_of(self, tenant: str) -> Sequence[Claim]: ...

    async def lock(self, tenant: str, name: str) -> Claim | None:
        """The claim, held against every other intent on it until the transaction ends."""
        ...

    async def add(self, claim: Claim) -> bool:
        """False when another request was faster (waits for that request's end)."""
        ...

    async def save(self, claim: Claim) -> None: ...

    async def release(self, instance_id: str) -> None: ...


class Operations(Protocol):
    """Operations and their numbered events."""

    async def find(self, tenant: str, operation_id: str) -> Operation | None: ...

    async def newest(self, instance_id: str) -> Operation | None: ...

    async def lock(self, operation_id: str) -> Operation | None:
        """The operation, held until the transaction ends."""
        ...

    async def add(self, operation: Operation) -> None: ...

    async def save(self, operation: Operation) -> None: ...

    async def note(self, operation_id: str, kind: str, at_ms: int, data: dict[str, Any]) -> int:
        """Append the operation's next event; returns its number. The operation is locked or new."""
        ...

    async def last_event(self, operation_id: str) -> int:
        """The number of its newest event; 0 for none."""
        ...

    async def events(self, operation_id: str, after: int, limit: int) -> Sequence[OperationEvent]: ...

    async def due(self, now_ms: int, limit: int) -> Sequence[Operation]:
        """Open operations past their deadline that are not marked yet; locked."""
        ...


class Keys(Protocol):
    """Idempotency keys, kept 30 days."""

    async def find(self, key: RequestKey) -> Remembered | None: ...

    async def take(self, key: RequestKey, now_ms: int) -> Remembered | None:
        """None: the key is now this request's. Waits for another request with the same key that is under way."""
        ...

    async def settle(self, key: RequestKey, refs: dict[str, str | None]) -> None: ...

    async def forget(self, before_ms: int) -> int: ...


class Instances(Protocol):
    """The read model of instances."""

    async def find(self, instance_id: str) -> InstanceState | None: ...

    async def put(self, state: InstanceState) -> bool:
        """False when a newer or equal version is held."""
        ...


class Runs(Protocol):
    """The read model of runs."""

    async def find(self, tenant: str, run_id: str) -> Run | None: ...

    async def put(self, run: Run) -> None:
        """Insert or replace; a run that has ended stays as it is."""
        ...


class Reads(Protocol):
    """A look at the api's own rows."""

    @property
    def users(self) -> Users: ...
    @property
    def claims(self) -> Claims: ...
    @property
    def operations(self) -> Operations: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def instances(self) -> Instances: ...
    @property
    def runs(self) -> Runs: ...


class Work(Reads, Protocol):
    """One transaction with its outgoing messages."""

    async def first_delivery(self) -> bool: ...

    async def emit(self, message: Message, *, id: str | None = None) -> str: ...  # noqa: A002


class Store(Protocol):
    """The api's own schema. Raises DependencyUnavailable when it does not answer."""

    def read(self) -> AbstractAsyncContextManager[Reads]: ...

    def begin(
        self, cause: Delivery[Any] | None = None, *, epoch: int | None = None
    ) -> AbstractAsyncContextManager[Work]:
        """Committed when the block ends, rolled back when it raises; with a stale epoch raises OwnershipLost."""
        ...


class TokenVerifier(Protocol):
    """Reads the website's tokens."""

    def verify(self, token: str) -> Proof:
        """Raises Unauthenticated for anything but a valid token."""
        ...


class Calls(Protocol):
    """Queries to other services."""

    async def call(self, rpc: Rpc[Q, R], request: Q, *, timeout_ms: int | None = None) -> R:
        """Raises RemoteError for a typed refusal, BusUnavailable when nobody answers."""
        ...


class Logged(Protocol):
    """One entry of a thread's log with its stream sequence."""

    @property
    def sequence(self) -> int: ...
    @property
    def entry(self) -> ThreadEntry: ...


class ThreadLogs(Protocol):
    """Threads' durable logs, for reading. Raises BusUnavailable when the stream does not answer."""

    def read(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[Logged]:
        """Up to the present end."""
        ...

    def follow(self, tenant: str, thread_id: str, after: int = 0) -> AsyncGenerator[Logged | None]:
        """Without end; None each 10 s of silence."""
        ...

    async def bounds(self, tenant: str, thread_id: str) -> tuple[int, int]:
        """First and last sequence; (0, 0) for an empty log."""
        ...


class Runtime(Protocol):
    """The runtime API. Raises RuntimeUnavailable when it does not answer, RuntimeRefused for its own errors."""

    async def sessions(self, tenant: str, instance_id: str) -> Any: ...

    async def history(self, tenant: str, instance_id: str, session_key: str, limit: int) -> Any: ...


class Watch(Protocol):
    """Waits for news of one operation."""

    async def wait(self, timeout_s: float) -> bool:
        """True when there is news, False when the time is over; news between two waits is kept."""
        ...


class Changes(Protocol):
    """Says within this process that an operation has news; other replicas notice by looking again."""

    def notify(self, operation_id: str) -> None: ...

    def watch(self, operation_id: str) -> AbstractAsyncContextManager[Watch]: ...
