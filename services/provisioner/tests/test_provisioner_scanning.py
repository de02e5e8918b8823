"""Looks at all processes hold up nobody and end in time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hatchery_provisioner.adapters.process import identity, scanning
from hatchery_provisioner.domain.errors import DriverTransient


@pytest.fixture
async def release() -> AsyncGenerator[threading.Event]:
    """What a wedged look waits for; set before the loop ends, which waits for its threads."""
    event = threading.Event()
    yield event
    event.set()


async def assert_given_up(release: threading.Event) -> None:
    with pytest.raises(DriverTransient) as slow:
        await scanning.scan(release.wait, limit_s=0.05)
    assert slow.value.reason == "driver_timeout"


async def test_a_slow_look_is_given_up(release: threading.Event) -> None:
    await asyncio.wait_for(assert_given_up(release), 5)


async def test_others_go_on_during_a_look(release: threading.Event) -> None:
    async def other() -> None:
        release.set()

    seen, _ = await asyncio.gather(scanning.scan(lambda: release.wait(5)), other())
    assert seen, "the look ended only because it was tired of waiting for the other"


async def test_wedged_looks_take_no_thread_of_others_and_make_the_next_fail_at_once(release: threading.Event) -> None:
    names: list[str] = []

    async def wedge() -> None:
        """A look that is under way when it is given up."""
        begun = asyncio.Event()

        def work() -> None:
            names.append(threading.current_thread().name)
            loop.call_soon_threadsafe(begun.set)
            release.wait()

        looking = asyncio.create_task(scanning.scan(work))
        await asyncio.wait_for(begun.wait(), 5)
        looking.cancel()
        await asyncio.wait({looking})

    loop = asyncio.get_running_loop()
    await wedge()
    assert await scanning.scan(lambda: "one thread is left") == "one thread is left"
    await wedge()
    assert [name.startswith("scan") for name in names] == [True, True]
    with pytest.raises(DriverTransient, match="have not ended"):
        await asyncio.wait_for(scanning.scan(lambda: None, limit_s=60), 5)
    release.set()
    async with asyncio.timeout(5):
        while scanning._given_up:  # noqa: ASYNC110 - another thread's last breath
            await asyncio.sleep(0.005)
    assert await scanning.scan(lambda: "well again") == "well again"


async def test_a_look_runs_in_a_thread_of_its_own() -> None:
    assert await scanning.scan(threading.get_ident) != threading.get_ident()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_nothing_of_ours_is_found_where_nothing_was_started(tmp_path: Path) -> None:
    assert await scanning.controllers(tmp_path) == {}
    assert await scanning.leftovers(tmp_path, None) == []
    assert os.getpid() not in dict(await scanning.leftovers(tmp_path, os.getuid() + 60_000))


NAMELESS = r"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"\xff\xfe) Z 1", 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_a_process_whose_name_is_no_text_is_a_process_like_others() -> None:
    command = [sys.executable, "-c", NAMELESS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"named\n"
        assert identity.is_same(process.pid, identity.started_ticks(process.pid))
    finally:
        process.communicate(timeout=10)
    assert identity.started_ticks(process.pid) is None


@pytest.mark.parametrize(("user", "told"), [(1000, True), (0, False)])
def test_a_process_that_we_may_not_read_is_not_ours(user: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that mounts /proc with hidepid=1, where a process id of ours was given to another user's process."""

    def refuse(_: Path) -> bytes:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if told:
        assert not identity.is_same(os.getpid(), 1)
        return
    with pytest.raises(PermissionError):  # to root it says that something is wrong
        identity.is_same(os.getpid(), 1)
