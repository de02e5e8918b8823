"""Dead letters: what can not be handled is published to `dlq.<original subject>` with its reason, then acknowledged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from hatchery_common.bus.envelope import MESSAGE_ID, Placed
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.registry import DEAD_PREFIX

CODE: Final = "Hatchery-Dead-Code"
REASON: Final = "Hatchery-Dead-Message"
STREAM: Final = "Hatchery-Dead-Stream"
SEQUENCE: Final = "Hatchery-Dead-Sequence"
DURABLE: Final = "Hatchery-Dead-Durable"
DELIVERIES: Final = "Hatchery-Dead-Deliveries"
AT: Final = "Hatchery-Dead-At"
REDRIVE: Final = "Hatchery-Redrive"  # how often this message has been sent again out of the dead letters

OnDead = Callable[[str, str], Awaitable[None]]
"""Told the id and type of every dead letter that has an id, so that the inbox can record the outcome `dead`."""


async def bury(
    publisher: Publisher, raw: Raw, place: Placed, *, durable: str, code: str, reason: str, deliveries: int
) -> int:
    """Publish the dead letter; publishing it again stores nothing twice. Returns its sequence in DLQ."""
    kept = {name: value for name, value in (raw.headers or {}).items() if not name.startswith("Nats-")}
    headers = {
        **kept,
        MESSAGE_ID: f"{place.stream}:{place.sequence}:{durable}",
        CODE: code,
        REASON: " ".join(reason.split())[:500],
        STREAM: place.stream,
        SEQUENCE: str(place.sequence),
        DURABLE: durable,
        DELIVERIES: str(deliveries),
        AT: datetime.now(UTC).isoformat(),
    }
    return await publisher.publish(f"{DEAD_PREFIX}{raw.subject}", headers, raw.data)
