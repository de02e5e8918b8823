"""Looks at all processes of this host without holding up anybody else, and never for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hatchery_provisioner.adapters.process import identity
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.reasons import Reason

T = TypeVar("T")
LIMIT_S = 8.0  # below the limit of an observation, so that the cause has a name
_THREADS = 2
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="scan")  # a read that never ends costs nobody else a thread
_given_up: set[Future[Any]] = set()


async def controllers(below: Path) -> dict[Path, int]:
    """The pid of each living controller by its root directory."""
    return await scan(lambda: dict(identity.controllers(below)))


async def leftovers(root: Path, uid: int | None) -> list[tuple[int, int | None]]:
    """Pid and start of what outlived its controller, under this root or under a user that is one tenant's alone."""

    def find() -> list[tuple[int, int | None]]:
        pids = set(identity.stragglers(root))
        if uid is not None:
            pids.update(identity.abandoned(uid))  # a tenant's process may have dropped its environment
        return [(pid, identity.started_ticks(pid)) for pid in sorted(pids)]

    return await scan(find)


async def scan(work: Callable[[], T], *, limit_s: float = LIMIT_S) -> T:
    """The result of a look in a thread; raises DriverTransient when it takes too long, and then nobody waits for it."""
    slow = f"the host's processes could not be read within {limit_s:g} s"
    if len(_given_up) >= _THREADS:
        raise DriverTransient(Reason.DRIVER_TIMEOUT, f"{slow}: {_THREADS} earlier looks have not ended yet")
    looking = _pool.submit(work)
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.wrap_future(looking)
    except TimeoutError:
        raise DriverTransient(Reason.DRIVER_TIMEOUT, slow) from None
    finally:
        if looking.running():  # its thread cannot be ended from outside
            _given_up.add(looking)
            looking.add_done_callback(_given_up.discard)
