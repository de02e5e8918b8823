"""How far the stream is applied: what waits on the bus, and the time of what came last."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hatchery_billing.adapters.backlog import BusBacklog
from hatchery_common.bus import BusUnavailable
from hatchery_common.clock import to_ms

MINUTE = 60_000


class Bus:
    """Says how many messages wait; None: it is away."""

    def __init__(self, waiting: int | None) -> None:
        self.waiting = waiting

    async def lag(self) -> dict[str, int]:
        if self.waiting is None:
            raise BusUnavailable("no answer")
        return {"CMD/billing": 5, "EVT/billing-batch": self.waiting}


def backlog(waiting: int | None, durable: str = "EVT/billing-batch") -> BusBacklog:
    return BusBacklog(Bus(waiting).lag, durable)


async def test_all_is_in_when_nothing_waits():
    assert await backlog(0).complete_to_ms(1_000) == 1_000


@pytest.mark.parametrize(
    "unsure", [backlog(None), backlog(1), backlog(0, "EVT/other")], ids=["away", "not begun", "no durable"]
)
async def test_nobody_can_say(unsure: BusBacklog):
    assert await unsure.complete_to_ms(1_000) is None


async def test_while_something_waits_it_is_complete_as_far_as_the_last_batch(sample: Any):
    late = sample.delivery(sample.opened("c1"))
    early = late._replace(time=late.time - timedelta(minutes=1))
    some = backlog(3)
    some.applied([late, early])
    now_ms = to_ms(late.time)
    assert await some.complete_to_ms(now_ms + MINUTE) == now_ms - MINUTE
    some.applied([late._replace(time=late.time + timedelta(hours=1))])  # another's clock is ahead
    assert await some.complete_to_ms(now_ms) == now_ms
