"""Finds the answer to a turn in OpenClaw's own history, where OpenClaw gave it in a run of its own.

Measured on OpenClaw 2026.9.6: a few seconds after a restart the gateway resumes an interrupted turn by itself. It adds a user
row that begins with `[System]`, and answers under a run id that is not ours. Likewise a message that was
steered into a running turn is answered by that turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hatchery_agent.domain.decisions import Finished, Usage

_RESUMED = "[System] Your previous turn was interrupted"
_UNFINISHED = frozenset({"toolUse", "error", "aborted"})


@dataclass(frozen=True)
class PastMessage:
    """One row of the history; `key` is the idempotency key of a user's row."""

    role: str
    text: str
    key: str | None = None
    stop_reason: str | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class History:
    """A session's recent rows, and whether OpenClaw works in it right now."""

    messages: Sequence[PastMessage] = ()
    active: bool = False


def find_answer(history: History, run_id: str) -> Finished | None:
    """The complete answer that follows this run's question, before the next question; None while there is none."""
    rows = history.messages
    asked = next((index for index, row in enumerate(rows) if row.key == f"{run_id}:user"), None)
    if asked is None:
        return None
    following = list(rows[asked + 1 :])
    end = next((index for index, row in enumerate(following) if _is_question(row)), None)
    answers = [row for row in following[:end] if row.role == "assistant"]
    if not answers or answers[-1].stop_reason in _UNFINISHED or (history.active and end is None):
        return None
    text = "\n\n".join(row.text for row in answers if row.text and row.stop_reason not in _UNFINISHED)
    return Finished(text, answers[-1].usage) if text else None


def _is_question(row: PastMessage) -> bool:
    return row.role == "user" and not row.text.startswith(_RESUMED)
