"""Dead letters, and the marks beside them in DLQ: which were sent again, when and as what; which were dismissed, and why."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hatchery_common.bus.envelope import MESSAGE_ID
from hatchery_common.bus.registry import DEAD_PREFIX, DLQ
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.scratch import Record

# Letters keep the subject they died on, which begins with cmd or evt: no letter can look like a mark.
SENT: Final = f"{DEAD_PREFIX}redriven."
DISMISSED: Final = f"{DEAD_PREFIX}dismissed."


@dataclass(frozen=True)
class Mark:
    """What became of a letter and when: its new sequence in its own stream, or why nobody will send it again."""

    letter: int
    at: datetime
    sent_as: int | None
    reason: str | None


@dataclass(frozen=True)
class Letter:
    """A dead letter, with the newest mark on it, if any."""

    record: Record
    mark: Mark | None

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has sent it again or dismissed it yet."""
        return self.mark is None


async def read_letters(bus: Operator) -> list[Letter]:
    """All dead letters, oldest first; raises BusUnavailable."""
    records: list[Record] = []
    marks: dict[int, Mark] = {}
    async with aclosing(bus.read(DLQ)) as found:
        async for record in found:
            mark = _mark_of(record)
            if mark is None:
                records.append(record)
            else:
                marks[mark.letter] = mark
    return [Letter(record, marks.get(record.sequence)) for record in records]


async def redrive(bus: Operator, letter: Letter) -> int:
    """Send it again, then mark it; its new sequence. A crash between the two leaves it waiting: sent twice, it counts once."""
    sent_as = await bus.redrive(letter.record.sequence)
    await _mark(bus, letter, SENT, f"redriven:{letter.record.sequence}:{sent_as}", sent_as=sent_as)
    return sent_as


async def dismiss(bus: Operator, letter: Letter, reason: str) -> None:
    """Say that it will not be sent again, and why; it stays as history. Safe to repeat."""
    await _mark(bus, letter, DISMISSED, f"dismissed:{letter.record.sequence}", reason=reason)


async def _mark(bus: Operator, letter: Letter, prefix: str, message_id: str, **what: Any) -> None:
    number = letter.record.sequence
    subject = letter.record.subject.removeprefix(DEAD_PREFIX)
    body = {"type": prefix.split(".")[1], "letter": number, "id": letter.record.id, "subject": subject, **what}
    await bus.jetstream.publish(f"{prefix}{number}", json.dumps(body).encode(), {MESSAGE_ID: message_id})


def _mark_of(record: Record) -> Mark | None:
    if not record.subject.startswith((SENT, DISMISSED)):
        return None
    body: dict[str, Any] = json.loads(record.data)
    return Mark(int(body["letter"]), record.time, body.get("sent_as"), body.get("reason"))
