"""The events of one chat turn, as they go to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ChatEventKind(StrEnum):
    """Names of the events; a turn ends with exactly one `final` or `error`."""

    ACCEPTED = "accepted"
    STATUS = "status"
    DELTA = "delta"
    FINAL = "final"
    ERROR = "error"


@dataclass(frozen=True)
class ChatEvent:
    """One event with its JSON data."""

    kind: ChatEventKind
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self.kind in (ChatEventKind.FINAL, ChatEventKind.ERROR)


def accepted(run_id: str, *, replayed: bool = False) -> ChatEvent:
    """The gateway took the turn, or had taken it before."""
    return ChatEvent(ChatEventKind.ACCEPTED, {"run_id": run_id, "replayed": replayed})


def status(phase: str) -> ChatEvent:
    """A sign of life without text."""
    return ChatEvent(ChatEventKind.STATUS, {"phase": phase})


def delta(text: str) -> ChatEvent:
    """More of the answer."""
    return ChatEvent(ChatEventKind.DELTA, {"text": text})


def final(text: str, usage: dict[str, Any] | None, **extra: Any) -> ChatEvent:
    """The whole answer; usage is None when the gateway does not tell."""
    return ChatEvent(ChatEventKind.FINAL, {"text": text, "usage": usage, **extra})


def failed(code: str, message: str) -> ChatEvent:
    """The turn ended without an answer."""
    return ChatEvent(ChatEventKind.ERROR, {"code": code, "message": message})
