"""Running seconds of one boot from a driver's observations; a gap of more than two minutes is listed and not counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

LONGEST_GAP_MS = 120_000


@dataclass(frozen=True)
class Boot:
    """What was observed of one boot of a machine; totals only grow."""

    boot_id: str
    instance_id: str
    machine_id: str
    tenant: str
    size: str
    last_observed_ms: int
    counted_ms: int = 0
    gap_ms: int = 0
    published_ms: int = 0
    final: bool = False

    @property
    def seconds_total(self) -> int:
        """Whole seconds that were observed."""
        return self.counted_ms // 1000

    @property
    def gap_seconds(self) -> int:
        """Whole seconds that nobody observed."""
        return self.gap_ms // 1000


def observed(boot: Boot, at_ms: int) -> Boot:
    """Seen running at this moment; an earlier moment than the last adds nothing.

    One that was called ended in error goes on from its total: totals only grow.
    """
    boot = replace(boot, final=False)
    passed = at_ms - boot.last_observed_ms
    if passed <= 0:
        return boot
    if passed > LONGEST_GAP_MS:
        return replace(boot, gap_ms=boot.gap_ms + passed, last_observed_ms=at_ms)
    return replace(boot, counted_ms=boot.counted_ms + passed, last_observed_ms=at_ms)


def ended(boot: Boot) -> Boot:
    """The boot is over: what was not observed before its end is not counted."""
    return replace(boot, final=True)


def is_due(boot: Boot, at_ms: int, every_ms: int) -> bool:
    """Whether a reading must be published now."""
    return at_ms - boot.published_ms >= every_ms
