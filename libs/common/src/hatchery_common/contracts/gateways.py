"""Facts about gateways and their model calls, reported by the runtime-proxy, and its readiness probe."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from hatchery_common.contracts.base import Event, Model, Rpc


class UsageOutcome(StrEnum):
    """How a model call ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class UsageOpened(Event):
    """A model call is about to leave; if no record follows within 15 minutes it is listed as unknown."""

    aggregate = "usage"
    verb = "opened"
    key = "call_id"

    call_id: str
    instance_id: str
    machine_id: str
    provider: str
    model: str
    opened_at_ms: int


class UsageRecorded(Event):
    """A model call ended; this event is its settlement. Token counts are the provider's own."""

    aggregate = "usage"
    verb = "recorded"
    key = "call_id"

    call_id: str
    instance_id: str
    machine_id: str
    provider: str
    model: str
    outcome: UsageOutcome
    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    cached_tokens: int = Field(default=0, ge=0)
    usage_known: bool = True
    opened_at_ms: int
    ended_at_ms: int
    first_byte_ms: int | None = None


class ProbeRequest(Model):
    """Ask whether the gateway of this machine answers its owner."""

    tenant: str
    instance_id: str
    machine_id: str
    route_version: int


class ProbeStage(StrEnum):
    """How far the probe came."""

    ROUTE = "route"
    READY = "ready"
    HELLO = "hello"
    DONE = "done"


class ProbeResponse(Model):
    """The probe's answer; `ok` only when `/ready` and an authenticated hello both succeeded."""

    ok: bool
    stage: ProbeStage
    detail: str | None = None
    gateway_version: str | None = None


PROBE: Rpc[ProbeRequest, ProbeResponse] = Rpc("runtime", "probe", ProbeRequest, ProbeResponse, timeout_ms=8_000)
EVENTS: tuple[type[Event], ...] = (UsageOpened, UsageRecorded)
