"""The gateway as a process group, and its strays: whatever it started ends with it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hatchery_controller.adapters.lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PR_SET_CHILD_SUBREAPER = 36
_OUTPUT_DEADLINE = 1.0  # a stray that holds the pipe must not hold us
_STRAYS_DEADLINE = 2.0


class ProcessLauncher:
    """The Launcher port: own session, own group, only the given environment, another user where one is given."""

    def __init__(
        self, *, cwd: Path, uid: int | None, gid: int | None, host: str, after_end: Callable[[], Awaitable[None]]
    ) -> None:
        self._cwd = cwd
        self._uid = uid
        self._gid = gid
        self._host = host
        self._after_end = after_end

    def start(self, command: list[str], environment: dict[str, str], on_line: Callable[[str], None]) -> Gateway:
        process = subprocess.Popen(
            command,
            cwd=self._cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            user=self._uid,
            group=self._gid,
            extra_groups=None if self._uid is None else [],
        )
        return Gateway(process, on_line, self._after_end)

    async def port_is_free(self, port: int) -> bool:
        deadline = time.monotonic() + 3
        while not _can_bind(self._host, port):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True


class Gateway:
    """A running gateway. Its group is killed while its own zombie still reserves the group's id: no stranger is hit."""

    def __init__(
        self, process: subprocess.Popen[bytes], on_line: Callable[[str], None], after_end: Callable[[], Awaitable[None]]
    ) -> None:
        self._process = process
        self._on_line = on_line
        self._after_end = after_end
        self._over = asyncio.ensure_future(self._finish())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await asyncio.shield(self._over)

    def terminate(self) -> None:
        # Only the leader: its workers must live until it has closed its databases.
        self._signal(lambda: os.kill(self.pid, signal.SIGTERM))

    def kill(self) -> None:
        self._signal(lambda: os.killpg(self.pid, signal.SIGKILL))

    def _signal(self, send: Callable[[], None]) -> None:
        if self._process.returncode is None:
            try:
                send()
            except (ProcessLookupError, PermissionError):
                pass  # macOS says "not permitted" for a group that holds only a zombie

    async def _finish(self) -> int:
        reader = LineReader(self._on_line)
        output = self._process.stdout
        assert output is not None
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: reader, output)
        await _exited(self._process)
        self.kill()
        code = self._process.wait()
        await self._after_end()
        await asyncio.wait({reader.closed}, timeout=_OUTPUT_DEADLINE)
        transport.close()
        return code


async def _exited(process: subprocess.Popen[bytes]) -> None:
    """Returns once the process is a zombie (its id still taken), or on systems without pidfd once it is reaped."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        await asyncio.to_thread(process.wait)
        return
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.add_reader(descriptor, lambda: None if over.done() else over.set_result(None))
    try:
        await over
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def adopt_strays() -> None:
    """From now on orphans below us become our children (Linux), so that we can reap and end them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_strays(gateway_pid: Callable[[], int | None]) -> None:
    """Collects ended orphans (on SIGCHLD); the gateway's own end is left to the one who waits for it."""
    if not hasattr(os, "waitid"):
        return
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == gateway_pid():
            return
        _reap(found.si_pid)


async def end_strays() -> None:
    """Kills every child of this process: what a gateway left outside its group. Only for a process that has no others."""
    deadline = time.monotonic() + _STRAYS_DEADLINE
    while (strays := _children()) and time.monotonic() < deadline:
        for pid in strays:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                pass
            _reap(pid)
        await asyncio.sleep(0.01)


def end_orphaned_gateway(pid: object, ticks: object) -> bool:
    """Kills the gateway of a controller that died without stopping it, if that very process still lives."""
    if not isinstance(pid, int) or not isinstance(ticks, int) or pid <= 1:
        return False
    found = started(pid)
    if found is None or found[0] != ticks:
        return False
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def started(pid: int) -> tuple[int, int] | None:
    """Start of a process in clock ticks since boot and in wall-clock ms (as psutil tells it); None where unknown."""
    fields = _stat(pid)
    if fields is None:
        return None
    ticks = int(fields[19])
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    boot = next((int(line.split()[1]) for line in lines if line.startswith("btime ")), 0)
    return ticks, int((boot + ticks / os.sysconf("SC_CLK_TCK")) * 1000)


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/<pid>/stat after the command's name, which may hold blanks, brackets and any other byte."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def _children() -> list[int]:
    us = str(os.getpid()).encode()
    try:
        pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if (fields := _stat(pid)) is not None and fields[1] == us]


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
