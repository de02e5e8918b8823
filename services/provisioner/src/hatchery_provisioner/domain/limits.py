"""How long each state may last, and how failures are spaced."""

from __future__ import annotations

from dataclasses import dataclass

from hatchery_common.contracts.instances import InstanceStatus


@dataclass(frozen=True)
class Limits:
    """Deadlines of states and of driver calls, in seconds."""

    start_s: float = 180.0
    stop_s: float = 60.0
    delete_s: float = 120.0
    degraded_s: float = 600.0
    drain_s: float = 0.3
    stop_grace_s: float = 20.0
    call_s: float = 30.0
    observe_s: float = 10.0
    probe_pause_s: float = 0.1
    silent_s: float = 5.0
    meter_s: float = 60.0
    healthy_s: float = 30.0
    max_attempts: int = 5
    backoff_first_s: float = 1.0
    backoff_longest_s: float = 300.0

    def backoff_ms(self, attempts: int) -> int:
        """The pause after this many failures in a row: doubling, bounded."""
        if attempts <= 0:
            return 0
        return int(min(self.backoff_first_s * 2.0 ** min(attempts - 1, 32), self.backoff_longest_s) * 1000)

    def of_status(self, status: InstanceStatus) -> float | None:
        """Seconds a status may last; None for those that may last for ever."""
        return {
            InstanceStatus.PROVISIONING: self.start_s,
            InstanceStatus.STARTING: self.start_s,
            InstanceStatus.RESTARTING: self.start_s + self.stop_s,
            InstanceStatus.DEGRADED: self.degraded_s,
            InstanceStatus.STOPPING: self.stop_s,
            InstanceStatus.DELETING: self.delete_s,
        }.get(status)
