"""The story of one instance: what concerns it on every stream, in order of time, each with what caused it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass

from hatchery_common.bus.replay import Operator
from hatchery_common.bus.scratch import Record, Start
from hatchery_common.errors import NotFound

from hatchery_cli.operating import body_of

_NOISE = ("hatchery.instance.metered.", "hatchery.usage.")


@dataclass(frozen=True)
class Chapter:
    """One message of the story; `cause` is the number of the one that led to it, `depth` how many led to it in all."""

    number: int
    record: Record
    cause: int | None
    depth: int


async def collect(bus: Operator, instance_id: str, *, start: Start, everything: bool = False) -> list[Chapter]:
    """All chapters, oldest first; raises NotFound when no message ever named this instance."""
    tenant = await _tenant_of(bus, instance_id)
    records = [
        record
        for stream, prefix in (("CMD", "cmd"), ("EVT", "evt"), ("DLQ", "dlq.*"))
        for record in await _read(bus, stream, f"{prefix}.{tenant}.>", start)
    ]
    return tell(records, instance_id, everything=everything)


def tell(records: Iterable[Record], instance_id: str, *, everything: bool = False) -> list[Chapter]:
    """Choose what concerns the instance, or was caused by what does, and number it."""
    chapters: list[Chapter] = []
    by_id: dict[str, Chapter] = {}
    for record in sorted(records, key=lambda record: (record.time, record.stream, record.sequence)):
        cause = by_id.get(record.headers.get("ce-causationid", ""))
        if not _concerns(record, instance_id) and cause is None:
            continue
        if not everything and (record.type or "").startswith(_NOISE):
            continue
        chapter = Chapter(len(chapters) + 1, record, cause.number if cause else None, cause.depth + 1 if cause else 0)
        chapters.append(chapter)
        if record.id and record.stream != "DLQ":
            by_id.setdefault(record.id, chapter)
    return chapters


def _concerns(record: Record, instance_id: str) -> bool:
    if record.subject.endswith(f".{instance_id}"):
        return True
    body = body_of(record)
    return isinstance(body, dict) and body.get("instance_id") == instance_id


async def _tenant_of(bus: Operator, instance_id: str) -> str:
    for stream, kind in (("EVT", "evt"), ("CMD", "cmd")):
        subjects = [f"{kind}.*.*.*.{instance_id}"]
        async with aclosing(bus.read(stream, subjects=subjects, limit=1)) as records:
            async for record in records:
                return record.subject.split(".")[1]
    raise NotFound(f"no message ever named {instance_id}", hint="`hatchery stream tail EVT` shows what there is")


async def _read(bus: Operator, stream: str, subject: str, start: Start) -> list[Record]:
    async with aclosing(bus.read(stream, subjects=[subject], start=start)) as records:
        return [record async for record in records]
