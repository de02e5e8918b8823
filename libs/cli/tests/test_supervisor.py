"""The supervisor outlives whatever goes wrong around it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.processes import wait_gone
from hatchery_cli.embedded.supervisor import Part, Supervisor
from hatchery_cli.terminal import Patient


async def until(check: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if check():
                return
            await asyncio.sleep(0.02)


async def yes() -> bool:
    return True


def sleeper(layout: Layout, **more: object) -> Part:
    settings: dict[str, object] = {"ready": yes, **more}
    argv = (sys.executable, "-c", "import time; time.sleep(60)")
    return Part("thing", argv, {}, layout.logs / "thing.log", **settings)  # type: ignore[arg-type]


class FullDisk:
    """Whoever is told of a change cannot write it down."""

    def __init__(self) -> None:
        self.is_full = False

    def __call__(self, name: str) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_part_is_restarted_and_stopped_while_nothing_can_be_written(layout: Layout) -> None:
    disk = FullDisk()
    supervisor = Supervisor(disk)
    await supervisor.start(sleeper(layout))
    condition = supervisor.conditions["thing"]
    disk.is_full = True
    assert condition.pid is not None
    os.kill(condition.pid, signal.SIGKILL)
    await until(lambda: condition.restarts == 1 and condition.state == "ready")
    pid = condition.pid
    assert pid is not None
    await supervisor.stop()
    assert wait_gone([pid], 5) == []


async def test_a_part_is_restarted_after_its_restart_broke(layout: Layout) -> None:
    breaks = [False, True, True]

    def before() -> None:
        if breaks and breaks.pop(0):
            raise RuntimeError("nobody foresaw this")

    supervisor = Supervisor(lambda _name: None)
    await supervisor.start(sleeper(layout, before=before))
    condition = supervisor.conditions["thing"]
    assert condition.pid is not None
    os.kill(condition.pid, signal.SIGKILL)
    await until(lambda: not breaks and condition.state == "ready")
    await supervisor.stop()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_console_on_a_full_disk_does_not_fail_its_caller() -> None:
    with Path("/dev/full").open("w") as full:
        console = Patient(file=full)
        console.print("this cannot be written")
        console.print("nor this")
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
