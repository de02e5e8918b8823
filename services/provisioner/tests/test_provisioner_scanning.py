"""Looks at all processes hold up nobody and end in time."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hatchery_provisioner.adapters.process import scanning
from hatchery_provisioner.domain.errors import DriverTransient


async def test_a_slow_look_is_given_up_while_others_go_on() -> None:
    release, ticks = threading.Event(), 0
    looking = asyncio.create_task(scanning.scan(release.wait, limit_s=0.2))
    try:
        while not looking.done():
            ticks += 1
            await asyncio.sleep(0.01)
        with pytest.raises(DriverTransient) as slow:
            await looking
        assert slow.value.reason == "driver_timeout"
        assert ticks > 3
    finally:
        release.set()


async def test_a_look_runs_in_a_thread_of_its_own() -> None:
    assert await scanning.scan(threading.get_ident) != threading.get_ident()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_nothing_of_ours_is_found_where_nothing_was_started(tmp_path: Path) -> None:
    assert await scanning.controllers(tmp_path) == {}
    assert await scanning.leftovers(tmp_path, None) == []
    assert os.getpid() not in dict(await scanning.leftovers(tmp_path, os.getuid() + 60_000))
