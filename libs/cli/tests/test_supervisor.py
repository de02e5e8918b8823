"""The supervisor outlives whatever goes wrong around it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hatchery_cli.embedded import nats, postgres
from hatchery_cli.embedded.budget import Budget
from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.leftovers import STOP_S
from hatchery_cli.embedded.logs import rotate
from hatchery_cli.embedded.machines import GATEWAYS_STOP_S, MACHINES_STOP_S
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


async def test_a_part_that_recovers_for_long_is_waited_for_and_says_so(layout: Layout) -> None:
    said: list[str] = []
    is_ready = asyncio.Event()

    async def ready() -> bool:
        return is_ready.is_set()

    async def why() -> str:
        return "replaying its log"

    def changed(name: str) -> None:
        waiting = supervisor.conditions[name].waiting
        if waiting is not None:
            said.append(waiting)
            is_ready.set()

    supervisor = Supervisor(changed)
    await supervisor.start(sleeper(layout, ready=ready, explain=why, slow_after_s=0.1))
    assert supervisor.conditions["thing"].state == "ready"
    assert supervisor.conditions["thing"].waiting is None
    assert len(said) == 1
    assert said[0].endswith("waiting for up to 15 min: replaying its log")
    await supervisor.stop()


async def test_a_part_is_killed_when_less_time_is_left_than_it_may_take(layout: Layout) -> None:
    supervisor = Supervisor(lambda _name: None)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )

    async def is_deaf() -> bool:
        return "deaf" in (layout.logs / "thing.log").read_text()

    part = Part("thing", (sys.executable, "-c", code), {}, layout.logs / "thing.log", is_deaf)
    await supervisor.start(part)
    async with asyncio.timeout(3):
        await supervisor.stop_one("thing", 0.2)


@pytest.mark.parametrize("probe", [nats.answers, postgres.accepts_queries])
async def test_a_server_that_takes_connections_and_says_nothing_is_not_ready(
    probe: Callable[[int], Awaitable[bool]], port: int
) -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", port)
    async with asyncio.timeout(5):
        assert not await probe(port)
    server.close()


def test_an_end_keeps_within_its_budget_when_every_step_takes_all_it_may() -> None:
    now = 0.0
    budget = Budget(STOP_S, lambda: now)
    now += budget.share(8)
    now += budget.share(MACHINES_STOP_S, keep_s=GATEWAYS_STOP_S + 4) + GATEWAYS_STOP_S
    last = budget.share(8)
    assert last == pytest.approx(4)
    assert now + last == pytest.approx(STOP_S)


def test_a_large_log_is_set_aside_while_a_part_writes_to_it(layout: Layout) -> None:
    log = layout.logs / "thing.log"
    with log.open("ab", buffering=0) as written:
        written.write(b"old\n" * 1000)
        rotate(log, limit=100_000)
        assert not log.with_name("thing.log.1").exists()
        rotate(log, limit=1000)
        written.write(b"new\n")
    assert log.read_text() == "new\n"
    assert log.with_name("thing.log.1").read_text() == "old\n" * 1000
    assert sorted(path.name for path in layout.logs.iterdir()) == ["thing.log", "thing.log.1"]
