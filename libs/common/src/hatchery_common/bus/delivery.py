"""What a handler is given, and how a service says which handler takes which message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from hatchery_common.contracts.base import Message

M = TypeVar("M", bound=Message, covariant=True)


class Delivery(NamedTuple, Generic[M]):
    """One message with its envelope; `id` is the ce-id by which the inbox knows it.

    A tuple, since one is made for every message: a frozen dataclass takes three times as long (tests/bench/bench_bus.py).
    """

    message: M
    id: str
    type: str
    tenant: str
    subject: str
    source: str
    time: datetime
    stream: str
    sequence: int
    deliveries: int = 1
    causation_id: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


class Cause(NamedTuple):
    """What led to a message, where its delivery is no longer at hand: the ce-id is all that is needed."""

    id: str
    correlation_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class Subscription:
    """One message type and its handler; messages of one lane (default: the aggregate's id) are handled in order.

    That holds within one life of a process. What a killed one held comes again after the wait for its acknowledgement, and
    newer messages of the lane may be delivered before: order across lives is the handler's, by version or generation.
    `on_dead` is told of a message of this type that went to the dead letters, until it returns; it must be safe to repeat.
    """

    message: type[Message]
    handler: Callable[[Delivery[Any]], Awaitable[None]]
    lane: Callable[[Any], str] | None = None
    on_dead: Callable[[Delivery[Any]], Awaitable[None]] | None = None


@dataclass(frozen=True)
class BatchSubscription:
    """Message types handled together: all of a batch in one transaction of the handler's, then acked."""

    messages: tuple[type[Message], ...]
    handler: Callable[[Sequence[Delivery[Any]]], Awaitable[None]]
    max_messages: int = 200
    max_wait_ms: int = 50
