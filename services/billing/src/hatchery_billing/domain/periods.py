"""Billing periods: calendar months in UTC, written `2026-11`."""

from __future__ import annotations

from datetime import UTC, datetime


def period_of(at_ms: int) -> str:
    """The period that holds this moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def period_end_ms(period: str) -> int:
    """The first millisecond after the period."""
    year, month = (int(part) for part in period.split("-"))
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp() * 1000)
