"""What the operators' commands share: a connection with the operator's rights, and messages as data and as lines."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.replay import Operator
from hatchery_common.bus.scratch import Record
from hatchery_common.errors import InvalidInput

from hatchery_cli.rendering import nkey_seed
from hatchery_cli.target import find_target

STREAMS = ("CMD", "EVT", "THREADS", "DLQ")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@asynccontextmanager
async def operator(directory: Path | None, url: str | None, seed: str | None) -> AsyncGenerator[Operator]:
    """Connect to the bus of this stack; raises NotRunning, BusUnavailable or Refused with what to do."""
    target = find_target(directory, bus=url, need_database=False)
    async with Operator.open(target.nats_url, seed=seed or nkey_seed(target.root_key, ADMIN)) as found:
        yield found


def stream_name(text: str) -> str:
    """The stream that is meant, in any case; raises InvalidInput naming those there are."""
    name = text.upper()
    if name not in STREAMS:
        raise InvalidInput(f"there is no stream {text}", hint=f"streams: {', '.join(STREAMS)}")
    return name


def moment(text: str, now: datetime | None = None) -> datetime:
    """A time: `15m`, `2h`, `3d` ago, or ISO 8601 (UTC unless it says otherwise); raises InvalidInput."""
    try:
        if text[:-1].isdigit() and text[-1:] in _UNITS:
            return (now or datetime.now(UTC)) - timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{text!r} is no time", hint="write 15m, 2h, 3d, or 2026-11-20T12:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def body_of(record: Record) -> Any:
    """The body, as JSON where it is some."""
    try:
        return json.loads(record.data) if record.data else None
    except ValueError:
        return record.data.decode(errors="replace")


def as_data(record: Record) -> dict[str, Any]:
    """Everything about a message, for --json and `show`."""
    headers = record.headers
    return {
        "stream": record.stream,
        "sequence": record.sequence,
        "time": record.time.isoformat(timespec="milliseconds"),
        "subject": record.subject,
        "type": record.type,
        "id": record.id,
        "tenant": headers.get("ce-tenantid"),
        "source": headers.get("ce-source"),
        "causation": headers.get("ce-causationid"),
        "correlation": headers.get("ce-correlationid"),
        "traceparent": headers.get("traceparent"),
        "body": body_of(record),
    }


def short_type(record: Record) -> str:
    """The type without what is the same everywhere; for thread logs the entry's own type."""
    if record.type is not None:
        return record.type.removeprefix("hatchery.").removesuffix(".v1")
    body = body_of(record)
    return str(body.get("type", "?")) if isinstance(body, dict) else "?"


def gist(record: Record) -> str:
    """What a line says about a body: its telling fields, in few words."""
    body = body_of(record)
    if not isinstance(body, dict):
        return ""
    told: dict[str, Any] = {**body.get("state", {}), **body} if isinstance(body.get("state"), dict) else dict(body)
    parts = [f"{name}={_short(told[name])}" for name in _TELLING if told.get(name) not in (None, "", {}, [])]
    data = told.get("data")
    if isinstance(data, dict):
        parts += [f"{name}={_short(value)}" for name, value in data.items()]
    return " ".join(parts)


_TELLING = (
    "status",
    "desired",
    "phase",
    "step",
    "reason",
    "code",
    "outcome",
    "message",
    "generation",
    "machine_id",
    "run_id",
    "thread_id",
    "call_id",
    "attempt",
    "duration_ms",
    "seconds_total",
    "amount_micro",
    "operation_id",
)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
