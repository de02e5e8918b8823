"""Subjects, streams, and the message types that a service may send and receive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hatchery_common.contracts.base import Message

CMD: Final = "CMD"
EVT: Final = "EVT"
THREADS: Final = "THREADS"
DLQ: Final = "DLQ"
ROUTES: Final = "KV_routes"
ROUTE_PREFIX: Final = "$KV.routes."
LIVE_PREFIX: Final = "live."  # THREADS repeats every stored entry here, for readers that follow
DEAD_PREFIX: Final = "dlq."
_STREAMS: Final = {"cmd": CMD, "evt": EVT, "thr": THREADS, "dlq": DLQ}


def stream_of(subject: str) -> str:
    """The stream that stores this subject."""
    if subject.startswith(ROUTE_PREFIX):
        return ROUTES
    stream = _STREAMS.get(subject.partition(".")[0])
    if stream is None:
        msg = f"no stream stores {subject!r}"
        raise ValueError(msg)
    return stream


class Registry:
    """Message types by their ce-type."""

    def __init__(self, types: Iterable[type[Message]]) -> None:
        self._types = {message.message_type(): message for message in types}

    def __contains__(self, message: object) -> bool:
        return isinstance(message, type) and message in self._types.values()

    def find(self, message_type: str) -> type[Message] | None:
        """The class of a ce-type, if it was declared."""
        return self._types.get(message_type)

    def streams(self) -> set[str]:
        """The streams in which these types lie."""
        return {stream_of(message.subject_filter()) for message in self._types.values()}


def durable_name(service: str, *, batch: bool = False) -> str:
    """The durable of a service on a stream: one for its lanes, one for its batches."""
    return f"{service}-batch" if batch else service
