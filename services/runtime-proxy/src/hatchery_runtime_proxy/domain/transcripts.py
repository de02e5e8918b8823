"""Reads what the gateway's `chat.history` says of one turn.

Measured on OpenClaw 2026.9.6 (docs/reference/openclaw-facts.md): the user's row carries `idempotencyKey` = `<key>:user`, the
answer's row carries the key as its run id. The gateway forgets its keys at a restart, so this is the only lasting record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_COUNTS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cacheRead": "cached_tokens",
    "totalTokens": "total_tokens",
}


class Ending(StrEnum):
    """How a turn ended, as far as the transcript tells."""

    ANSWERED = "answered"
    STEERED = "steered"  # its message went into a turn that was running
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(frozen=True)
class Turn:
    """What a transcript knows of one idempotency key; `ending` is None while it runs, or when it was interrupted."""

    asked: bool = False  # the gateway took it: some row of it is there
    asked_at_ms: int = 0  # at the latest: when the oldest of these rows was written
    ending: Ending | None = None
    steered_into: str | None = None
    text: str = ""
    usage: dict[str, Any] | None = None


def find_turn(messages: Iterable[Mapping[str, Any]], key: str) -> Turn:
    """The turn of this key; several answer rows (a steered turn, a tool loop) make one answer."""
    rows = [message for message in messages if _belongs(message, key)]
    question = next((row for row in rows if row.get("idempotencyKey") == f"{key}:user"), {})
    answers = [row for row in rows if row.get("role") in ("assistant", "custom") and _marks(row).get("runId") == key]
    good = [row for row in answers if _ending(row, key) in (None, Ending.ANSWERED)]
    steered_into = _marks(question).get("steerTargetRunId")
    ending = Ending.STEERED if steered_into and not answers else None
    return Turn(
        asked=bool(rows),
        asked_at_ms=int(_marks(rows[0]).get("recordTimestampMs") or 0) if rows else 0,
        ending=_ending(answers[-1], key) if answers else ending,
        steered_into=steered_into,
        text="\n\n".join(text for answer in good if (text := text_of(answer))),
        usage=_add_up(answer.get("usage") for answer in good),
    )


def _belongs(row: Mapping[str, Any], key: str) -> bool:
    """The question of a long turn may lie before the rows that were read: what it answered and what its tools did stay."""
    return _marks(row).get("runId") == key or row.get("idempotencyKey") in (f"{key}:user", f"{key}:assistant")


def _ending(row: Mapping[str, Any], key: str) -> Ending | None:
    """What this row, standing last, says of its turn; a call of a tool says that more is to come."""
    if row.get("role") == "custom" or row.get("stopReason") == "error":
        return Ending.FAILED
    if row.get("idempotencyKey") == f"{key}:assistant" or row.get("stopReason") == "aborted":
        return Ending.ABORTED
    return None if row.get("stopReason") == "toolUse" else Ending.ANSWERED


def text_of(message: Mapping[str, Any] | None) -> str:
    """The plain text of a message, whose content is a text or a list of parts."""
    content = (message or {}).get("content", "")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if part.get("type", "text") == "text")


def _marks(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return message.get("__openclaw") or {}


def _add_up(usages: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    known = [usage for usage in usages if usage]
    if not known:
        return None
    return {ours: sum(int(usage.get(theirs) or 0) for usage in known) for theirs, ours in _COUNTS.items()}


def show_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the transcript in our words."""
    marks = _marks(message)
    return {
        "role": message.get("role"),
        "text": text_of(message),
        "at_ms": marks.get("recordTimestampMs") or message.get("timestamp"),
        "run_id": marks.get("runId"),
        "idempotency_key": message.get("idempotencyKey"),
        "stop_reason": message.get("stopReason"),
        "usage": _add_up([message.get("usage")]),
    }
