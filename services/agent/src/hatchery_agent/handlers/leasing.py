"""Holding a thread: take the lease, renew it with a beat, stop the work when it is lost, give it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hatchery_common.errors import DependencyUnavailable
from hatchery_common.ids import new_id

from hatchery_agent.domain.errors import LeaseLost, ThreadBusy
from hatchery_agent.ports import Held, Lease, Leases

T = TypeVar("T")


async def hold_thread(
    work: Callable[[Lease], Coroutine[Any, Any, T]],
    tenant: str,
    thread_id: str,
    *,
    leases: Leases,
    lease_s: float,
    patience_s: float | None = None,
) -> T:
    """Run `work` while holding the thread's lease; returns what it does, when the lease is given back.

    Raises ThreadBusy when others hold it for so long (two lease times unless told); LeaseLost, with `work` cancelled, when it
    is taken away.
    """
    patience_s = 2 * lease_s if patience_s is None else patience_s
    lease = await _take(tenant, thread_id, leases=leases, patience_s=patience_s)
    try:
        return await _with_beat(work(lease), lease, leases=leases, lease_s=lease_s)
    finally:
        await _give_back(lease, leases=leases)


async def _take(tenant: str, thread_id: str, *, leases: Leases, patience_s: float) -> Lease:
    holder = new_id("wrk")
    give_up = time.monotonic() + patience_s
    while True:
        taken = await leases.take(tenant, thread_id, holder)
        if isinstance(taken, Lease):
            return taken
        wait_s = _pause(taken, give_up - time.monotonic())
        if wait_s <= 0:
            raise ThreadBusy("another worker holds this thread", thread_id=thread_id)
        await asyncio.sleep(wait_s)


def _pause(held: Held, left_s: float) -> float:
    # The holder may give it back early, so look again before its time is over.
    return min(max(held.remaining_s, 0.05), 1.0, left_s)


async def _with_beat(work: Coroutine[Any, Any, T], lease: Lease, *, leases: Leases, lease_s: float) -> T:
    job = asyncio.ensure_future(work)
    beat = asyncio.ensure_future(_keep(lease, leases=leases, lease_s=lease_s))
    try:
        await asyncio.wait({job, beat}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        beat.result()  # raises why the lease could not be kept
        raise LeaseLost("the lease is no longer kept", thread_id=lease.thread_id)
    finally:
        job.cancel()
        beat.cancel()
        await asyncio.gather(job, beat, return_exceptions=True)


async def _keep(lease: Lease, *, leases: Leases, lease_s: float) -> None:
    good_until = time.monotonic() + lease_s
    while True:
        await asyncio.sleep(lease_s / 3)
        asked = time.monotonic()
        try:
            if not await leases.renew(lease):
                raise LeaseLost("another worker took this thread", thread_id=lease.thread_id)
            good_until = asked + lease_s
        except LeaseLost:
            raise
        except DependencyUnavailable:
            if time.monotonic() > good_until:
                raise LeaseLost("the lease could not be renewed in time", thread_id=lease.thread_id) from None


async def _give_back(lease: Lease, *, leases: Leases) -> None:
    try:
        async with asyncio.timeout(3):
            await leases.release(lease)
    except (DependencyUnavailable, TimeoutError):
        return  # it expires by itself
