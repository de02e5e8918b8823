"""The health ladder booting → configured → live → ready → degraded, and what follows when a gateway ends.

Times come in as a `Moment`; nothing here reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from hatchery_controller.domain.words import with_words

EXIT_CONFIG = 78  # the gateway's own "configuration" class: starting again cannot help
CRASH_LOOP_AFTER = 3
MISSES_UNTIL_DEGRADED = 3
MAX_MESSAGE = 2000


class Phase(StrEnum):
    """Where a machine stands."""

    BOOTING = "booting"
    CONFIGURED = "configured"
    LIVE = "live"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a machine is not simply ready."""

    BUNDLE_INVALID = "boot_bundle_invalid"
    SEALED_UNREADABLE = "sealed_environment_unreadable"
    ENVIRONMENT_INVALID = "environment_invalid"
    ENVIRONMENT_RESERVED = "environment_reserved"
    STORAGE_FULL = "storage_full"
    STORAGE_UNWRITABLE = "storage_unwritable"
    PORT_TAKEN = "gateway_port_taken"
    NOT_STARTABLE = "gateway_not_startable"
    CONFIG_REJECTED = "config_rejected"
    NEVER_LIVE = "gateway_never_live"
    NEVER_READY = "gateway_never_ready"
    NOT_READY = "gateway_not_ready"
    UNRESPONSIVE = "gateway_unresponsive"
    CRASHED = "gateway_crashed"
    CRASH_LOOP = "crash_loop"
    RESTART = "restart_requested"


class Moment(NamedTuple):
    """One instant: wall clock for people, a steady clock for durations."""

    wall_ms: int
    steady: float


class Probe(NamedTuple):
    """What the gateway answered: /health, /ready, and why not."""

    live: bool
    ready: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of the phases and the back-off, in seconds."""

    live_within: float = 180
    ready_within: float = 180
    responsive_within: float = 180
    healthy_after: float = 30
    backoff_first: float = 1
    backoff_longest: float = 300


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """What is known about the gateway process."""

    pid: int | None = None
    exit_code: int | None = None
    restarts: int = 0
    started_at_ms: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """One revision of what `GET /v1/state` tells."""

    revision: int
    phase: Phase
    since: int
    reason: str | None = None
    message: str = ""
    gateway: GatewayFacts = GatewayFacts()

    def as_json(self) -> dict[str, Any]:
        facts = self.gateway
        return {
            "revision": self.revision,
            "phase": self.phase.value,
            "reason": self.reason,
            "message": self.message,
            "since": self.since,
            "gateway": {
                "pid": facts.pid,
                "exit_code": facts.exit_code,
                "restarts": facts.restarts,
                "started_at_ms": facts.started_at_ms,
                "version": facts.version,
            },
        }


def backoff(failures: int, limits: Limits) -> float:
    """Seconds to wait after this many failures in a row: doubling, up to the longest."""
    return min(limits.backoff_first * 2 ** min(failures - 1, 32), limits.backoff_longest)


class Ladder:
    """The state of one machine. Every change has a new revision; revisions only grow, over restarts too."""

    def __init__(self, limits: Limits, now: Moment) -> None:
        self.limits = limits
        self.state = State(revision=now.wall_ms, phase=Phase.BOOTING, since=now.wall_ms)
        self.failures = 0
        self._misses = 0
        self._entered = now.steady
        self._ready_since: float | None = None
        self._answered = now.steady

    def configured(self, now: Moment) -> None:
        """The configuration is written and the gateway is about to start; a reason for starting again is kept."""
        self._move(now, Phase.CONFIGURED, self.state.reason, self.state.message)

    def spawned(self, pid: int, now: Moment) -> None:
        self._entered = self._answered = now.steady
        self._misses = 0
        self._ready_since = None
        again = self.state.gateway.started_at_ms is not None
        restarts = self.state.gateway.restarts + (1 if again else 0)
        self._facts(now, pid=pid, exit_code=None, started_at_ms=now.wall_ms, restarts=restarts)

    def knows_version(self, version: str | None, now: Moment) -> None:
        self._facts(now, version=version)

    def probed(self, probe: Probe, now: Moment) -> None:
        """Climbs or slips by one answer. A single miss is not a fall."""
        if self.state.phase is Phase.FAILED:
            return
        if probe.live:
            self._answered = now.steady
        if probe.ready:
            self._misses = 0
            if self._ready_since is None:
                self._ready_since = now.steady
            self._move(now, Phase.READY, None, "")
        elif self.state.phase in (Phase.READY, Phase.DEGRADED):
            self._misses += 1
            if self._misses >= MISSES_UNTIL_DEGRADED or self.state.phase is Phase.DEGRADED:
                self._ready_since = None
                self._move(now, Phase.DEGRADED, Reason.NOT_READY if probe.live else Reason.UNRESPONSIVE, probe.detail)
        elif probe.live and self.state.phase is Phase.CONFIGURED:
            self._move(now, Phase.LIVE, self.state.reason, self.state.message)

    def overdue(self, now: Moment) -> Reason | None:
        """The reason why this phase has lasted too long, if it has."""
        lasted = now.steady - self._entered
        if self.state.phase is Phase.CONFIGURED and lasted > self.limits.live_within:
            return Reason.NEVER_LIVE
        if self.state.phase is Phase.LIVE and lasted > self.limits.ready_within:
            return Reason.NEVER_READY
        silent = now.steady - self._answered
        if self.state.phase is Phase.DEGRADED and silent > self.limits.responsive_within:
            return Reason.UNRESPONSIVE
        return None

    def exited(self, code: int, text: str, now: Moment) -> float | None:
        """The gateway ended by itself: the seconds to wait before the next start, None if there is none.

        People read the message long after, so it promises nothing; the log says when the next start is.
        """
        if self._ready_since is not None and now.steady - self._ready_since >= self.limits.healthy_after:
            self.failures = 0
        self._facts(now, pid=None, exit_code=code)
        if code == EXIT_CONFIG:
            self._move(now, Phase.FAILED, Reason.CONFIG_REJECTED, text or "the gateway refused its configuration")
            return None
        self.failures += 1
        wait = backoff(self.failures, self.limits)
        reason = Reason.CRASH_LOOP if self.failures >= CRASH_LOOP_AFTER else Reason.CRASHED
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self._move(now, Phase.DEGRADED, reason, with_words(f"the gateway {ended}", text))
        return wait

    def ended(self, code: int | None, now: Moment) -> None:
        """The gateway ended because we ended it."""
        self._facts(now, pid=None, exit_code=code)

    def failed(self, reason: str, message: str, now: Moment) -> None:
        self._move(now, Phase.FAILED, reason, message)

    def restarting(self, message: str, now: Moment) -> None:
        """Somebody asked for a fresh start, so earlier failures no longer count."""
        self.failures = 0
        self._move(now, Phase.CONFIGURED, Reason.RESTART, message)

    def stopping(self, now: Moment) -> None:
        self._move(now, Phase.STOPPING, None, "")

    def stopped(self, now: Moment) -> None:
        self._move(now, Phase.STOPPED, None, "")

    def _move(self, now: Moment, phase: Phase, reason: str | None, message: str) -> None:
        if self.state.phase is Phase.STOPPED or (self.state.phase is Phase.STOPPING and phase is not Phase.STOPPED):
            return  # what still happens to a gateway that is being stopped is no news
        message = message[:MAX_MESSAGE]
        if (self.state.phase, self.state.reason, self.state.message) == (phase, reason, message):
            return
        since = self.state.since
        if self.state.phase is not phase:
            self._entered = now.steady
            since = now.wall_ms
        self._put(now, phase=phase, since=since, reason=reason, message=message)

    def _facts(self, now: Moment, **facts: Any) -> None:
        gateway = replace(self.state.gateway, **facts)
        if gateway != self.state.gateway:
            self._put(now, gateway=gateway)

    def _put(self, now: Moment, **changes: Any) -> None:
        revision = max(self.state.revision + 1, now.wall_ms)
        self.state = replace(self.state, revision=revision, **changes)
