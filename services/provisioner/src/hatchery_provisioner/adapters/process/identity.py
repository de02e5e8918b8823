"""Which process is ours: never by its id alone, always with its start time and what it was started for."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_PACKAGE = "hatchery_controller"
_POLL_S = 0.05


def started_ticks(pid: int) -> int | None:
    """The start time of a living process in ticks since the host's boot; None when it is gone, a zombie, or not ours.

    Raises OSError when that cannot be told.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return _portable_start(pid)
    except PermissionError:  # /proc with hidepid: a process that we may not read has another user
        if os.geteuid() == 0:
            raise
        return None
    fields = line.rpartition(b")")[2].split()  # bytes: a process may give itself a name in no encoding
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _portable_start(pid: int) -> int | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.Error:
        return None


def is_same(pid: int | None, ticks: int | None) -> bool:
    """Whether this very process still lives."""
    return pid is not None and ticks is not None and pid > 1 and started_ticks(pid) == ticks


def started_at_ms(pid: int) -> int | None:
    """The start time of a process on the wall clock."""
    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return None


def boot_id(machine_id: str, pid: int, ticks: int) -> str:
    """One boot of one machine: another process, another start of the host, another boot."""
    try:
        host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        host = str(int(psutil.boot_time()))
    return "boot_" + hashlib.sha256(f"{machine_id}/{host}/{pid}/{ticks}".encode()).hexdigest()[:26]


def controllers(below: Path) -> Iterator[tuple[Path, int]]:
    """Root directory and pid of each living controller whose root lies below this directory: the look-up by label.

    Controllers keep our user. A command line alone proves nothing: any tenant's process may choose its own.
    """
    for process in psutil.process_iter(["cmdline", "uids"]):
        command: list[str] = process.info["cmdline"] or []
        if _PACKAGE not in command or "--root" not in command:
            continue
        if not process.info["uids"] or process.info["uids"].real != os.getuid():
            continue
        place = command.index("--root") + 1
        if place < len(command) and Path(command[place]).parent == below and started_ticks(process.pid) is not None:
            yield Path(command[place]), process.pid


def stragglers(root: Path) -> list[int]:
    """Processes of a gateway under this root that outlived their controller, found by their environment."""
    wanted = str(root / "state")
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("OPENCLAW_STATE_DIR") == wanted:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def abandoned(uid: int) -> list[int]:
    """Processes of a gateway's user that descend from no living controller, whatever they call themselves.

    Another stack of this host may use the same user: there a controller lives above them, since it adopts orphans.
    """
    parents: dict[int, int] = {}
    above: set[int] = set()
    found: list[int] = []
    for process in psutil.process_iter(["ppid", "uids", "cmdline", "status"]):
        info = process.info
        if info["uids"] is None or info["ppid"] is None:
            continue
        parents[process.pid] = info["ppid"]
        if info["uids"].real == os.getuid() and _PACKAGE in (info["cmdline"] or []):
            above.add(process.pid)
        if info["uids"].real == uid and info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return [pid for pid in found if above.isdisjoint(_ancestors(pid, parents))]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    seen: set[int] = set()
    while (pid := parents.get(pid, 0)) > 1 and pid not in seen:
        seen.add(pid)
    return seen


def kill_group(pid: int) -> None:
    """Kill a process and, if it leads one, its whole group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


async def wait_gone(pid: int, ticks: int, limit_s: float) -> bool:
    """Whether this very process ends within the limit; by the kernel's notice where there is one."""
    until = time.monotonic() + limit_s
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        descriptor = None
    try:
        while is_same(pid, ticks) and time.monotonic() < until:
            await _notice(descriptor, min(_POLL_S if descriptor is None else 1.0, until - time.monotonic()))
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return not is_same(pid, ticks)


async def _notice(descriptor: int | None, limit_s: float) -> None:
    if descriptor is None:
        await asyncio.sleep(max(0.0, limit_s))
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(max(0.0, limit_s)):
            await ended.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(descriptor)
