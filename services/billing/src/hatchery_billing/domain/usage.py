"""What the ledger knows of machines and model calls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass
class Boot:
    """One boot of a machine: its cumulative seconds and what they have cost so far."""

    instance_id: str
    boot_id: str
    tenant: str
    size: str
    seconds_total: int = 0
    posted_seconds: int = 0  # the total at the last charge: charges tile the boot without a gap
    gap_seconds: int = 0
    accrued_pico: int = 0
    charged_micro: int = 0
    final: bool = False
    last_observed_ms: int = 0


class CallState(StrEnum):
    """Where a model call stands."""

    OPENED = "opened"
    RECORDED = "recorded"
    UNKNOWN = "unknown"  # no record in time, or a record without usage
    UNPRICED = "unpriced"  # recorded, but its model had no price: listed, never guessed
    REFUSED = "refused"  # recorded with token counts that contradict each other
    UNSPENT = "unspent"  # recorded as failed at the provider before it spent anything: no charge, no line


SETTLED = frozenset({CallState.RECORDED, CallState.UNPRICED, CallState.REFUSED, CallState.UNSPENT})


@dataclass
class Call:
    """One model call with the tokens and the price it was charged by."""

    call_id: str
    tenant: str
    instance_id: str
    provider: str
    model: str
    state: CallState
    opened_at_ms: int
    ended_at_ms: int | None = None
    outcome: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    amount_micro: int | None = None
    price_id: str | None = None


@dataclass
class PeriodUsage:
    """What one tenant was granted and used in one period."""

    account_id: str
    period: str
    granted_micro: int = 0
    burned_micro: int = 0
    machine_seconds: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
