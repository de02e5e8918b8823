"""Dead letters, and the marks beside them in DLQ that say which ones were sent again, when and as what."""

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
MARKS: Final = f"{DEAD_PREFIX}redriven."


@dataclass(frozen=True)
class Mark:
    """A letter was sent again: when, and its new sequence in its own stream."""

    letter: int
    at: datetime
    sent_as: int


@dataclass(frozen=True)
class Letter:
    """A dead letter, with the newest mark on it if it was sent again."""

    record: Record
    mark: Mark | None

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has sent it again yet."""
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
    number = letter.record.sequence
    sent_as = await bus.redrive(number)
    body = {
        "type": "redriven",
        "letter": number,
        "id": letter.record.id,
        "subject": letter.record.subject.removeprefix(DEAD_PREFIX),
        "sent_as": sent_as,
    }
    headers = {MESSAGE_ID: f"redriven:{number}:{sent_as}"}
    await bus.jetstream.publish(f"{MARKS}{number}", json.dumps(body).encode(), headers)
    return sent_as


def _mark_of(record: Record) -> Mark | None:
    if not record.subject.startswith(MARKS):
        return None
    body: dict[str, Any] = json.loads(record.data)
    return Mark(int(body["letter"]), record.time, int(body["sent_as"]))
