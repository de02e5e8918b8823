"""What a worker works with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hatchery_common.clock import Clock
from hatchery_common.timers import Wake

from hatchery_agent.handlers.turns import TurnLimits
from hatchery_agent.ports import Leases, Log, Parking, Runs, RuntimeTurns


@dataclass(frozen=True)
class RunTools:
    """Everything a worker works with; `wake` is set when parked runs may have become due in another way than by time."""

    log: Log
    leases: Leases
    runs: Runs
    parking: Parking
    runtime: RuntimeTurns
    clock: Clock
    slots: asyncio.Semaphore
    wake: Wake = field(default_factory=Wake)
    limits: TurnLimits = field(default_factory=TurnLimits)
    lease_s: float = 15
    max_attempts: int = 5
