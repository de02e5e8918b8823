"""Runs the parts of a stack as child processes: started in order, restarted with back-off, stopped in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hatchery_cli.embedded.logs import rotate, tail
from hatchery_cli.errors import ServerFailed

_FIRST_BACKOFF_S = 0.2
_LAST_BACKOFF_S = 10.0
_HEALTHY_AFTER_S = 5.0  # a crash loop does not live that long
_NEXT_WORD_S = 30.0  # between two words about a start that takes long
_SLOW_POLL_S = 0.5
PROBE_S = 2.0  # one look at whether a server answers


@dataclass(frozen=True)
class Part:
    """One child process; `ready` says whether it does its work, `before` clears what an earlier run left."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    ready_within_s: float = 900.0  # at its first start; a large store takes its time to recover
    slow_after_s: float = 20.0  # then it is told what is waited for; after a restart the part counts as degraded
    poll_s: float = 0.02
    before: Callable[[], object] | None = None
    explain: Callable[[], Awaitable[str]] | None = None  # why it is not ready, better than the end of its log
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within_s: float = 8.0
    uid: int | None = None
    gid: int | None = None


@dataclass
class Condition:
    """What is known of a part right now."""

    state: str = "stopped"  # starting, ready, degraded, restarting, stopping, stopped, failed
    pid: int | None = None
    since: float = field(default_factory=time.time)
    restarts: int = 0
    reason: str | None = None
    waiting: str | None = None  # what a start that takes long waits for


class NotReady(ServerFailed):
    """It runs, but does not get ready."""


class Supervisor:
    """Owns the child processes of one stack; `changed` is called with a part's name whenever its condition changed."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._parts: dict[str, Part] = {}
        self._children: dict[str, Process] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self.conditions: dict[str, Condition] = {}

    async def start(self, part: Part) -> None:
        """Start a part and wait until it is ready, as long as it lives; raises ServerFailed with the end of its log."""
        self._parts[part.name] = part
        self.conditions[part.name] = Condition()
        try:
            await self._launch(part, part.ready_within_s)
        except (ServerFailed, OSError) as error:
            self._set(part.name, "failed", reason=str(error))
            await self._end(part)
            raise
        self._watchers[part.name] = asyncio.create_task(self._watch(part), name=f"watch {part.name}")

    async def stop(self) -> None:
        """Stop all parts, the last started first."""
        for name in reversed(list(self._parts)):
            await self.stop_one(name)

    async def stop_one(self, name: str, within_s: float = float("inf")) -> None:
        """Stop one part and forget it; nothing happens when it was never started. It is killed after its own limit or this."""
        part = self._parts.pop(name, None)
        if part is None:
            return
        if watcher := self._watchers.pop(name, None):
            watcher.cancel()
            await asyncio.wait([watcher])
        self._set(name, "stopping")
        await self._end(part, within_s)
        self._set(name, "stopped")

    async def _launch(self, part: Part, within_s: float) -> None:
        if part.before is not None:
            await asyncio.to_thread(part.before)
        self._set(part.name, "starting")
        rotate(part.log)
        with part.log.open("ab") as log:  # appended to, so that it can be emptied while the child holds it
            child = await asyncio.create_subprocess_exec(
                *part.argv, stdin=DEVNULL, stdout=log, stderr=log, env=dict(part.environment), cwd="/",
                start_new_session=True, user=part.uid, group=part.gid,
                extra_groups=[] if part.uid is not None else None,
            )  # fmt: skip
        self._children[part.name] = child
        self._set(part.name, "starting", pid=child.pid)
        await self._until_ready(part, child, within_s)
        self._set(part.name, "ready", pid=child.pid)

    async def _until_ready(self, part: Part, child: Process, within_s: float) -> None:
        """Wait while it lives and may be recovering; raises ServerFailed when it ends, NotReady at the limit."""
        began = time.monotonic()
        next_word = part.slow_after_s
        while not await part.ready():
            waited = time.monotonic() - began
            if child.returncode is not None:
                raise ServerFailed(f"{part.name} {ended(child.returncode)}{tail(part.log)}", hint=f"see {part.log}")
            if waited > within_s:
                raise NotReady(
                    f"{part.name} did not get ready within {within_s:.0f} s: {await _why(part)}", hint=f"see {part.log}"
                )
            if waited > next_word:
                next_word = waited + _NEXT_WORD_S
                waiting = (
                    f"is not ready after {waited:.0f} s, waiting for up to {within_s / 60:.0f} min: {await _why(part)}"
                )
                self._set(part.name, "starting", pid=child.pid, waiting=waiting)
            await asyncio.sleep(part.poll_s if waited < part.slow_after_s else _SLOW_POLL_S)

    async def _watch(self, part: Part) -> None:
        """See to it that the part runs, for ever: without its watcher it would never be started again."""
        backoff = _Backoff()
        while True:
            try:
                await self._renew(part, backoff)
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the part is to be started again
                child = self._children[part.name]
                state = "restarting" if child.returncode is not None else "degraded"
                self._keep(part.name, state, pid=child.pid, reason=f"{type(error).__name__}: {error}")
                await asyncio.sleep(backoff.next())

    async def _renew(self, part: Part, backoff: _Backoff) -> None:
        """Wait for the end of the child, say why, start it again."""
        child = self._children[part.name]
        code = await self._until_ended(part, child)
        self.conditions[part.name].restarts += 1
        reason = ended(code) if code < 0 else f"{ended(code)}{tail(part.log)}"
        self._set(part.name, "restarting", reason=reason)
        kill_group(child.pid)
        await asyncio.sleep(backoff.next())
        backoff.begun()
        try:
            await self._launch(part, min(part.slow_after_s, part.ready_within_s))
        except NotReady as error:  # it lives and says what it waits for: another restart would not help
            self._set(part.name, "degraded", pid=self._children[part.name].pid, reason=str(error))
        except (ServerFailed, OSError) as error:
            self._set(part.name, "restarting", reason=str(error))
            await self._end(part)

    async def _until_ended(self, part: Part, child: Process) -> int:
        """Wait for the end of the child; meanwhile notice when a degraded one becomes ready."""
        while self.conditions[part.name].state == "degraded":
            try:
                return await asyncio.wait_for(child.wait(), 1)
            except TimeoutError:
                if await part.ready():
                    self._set(part.name, "ready", pid=child.pid)
        return await child.wait()

    async def _end(self, part: Part, within_s: float = float("inf")) -> None:
        """Stop one child: its signal, then SIGKILL for its whole group."""
        child = self._children.get(part.name)
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(part.stop_signal)
            try:
                await asyncio.wait_for(child.wait(), min(part.stop_within_s, within_s))
            except TimeoutError:
                kill_group(child.pid)
                await child.wait()
        kill_group(child.pid)

    def _set(
        self, name: str, state: str, *, pid: int | None = None, reason: str | None = None, waiting: str | None = None
    ) -> None:
        self._keep(name, state, pid=pid, reason=reason, waiting=waiting)
        with contextlib.suppress(
            OSError
        ):  # a full disk or a closed terminal: parts are watched and stopped all the same
            self._changed(name)

    def _keep(self, name: str, state: str, *, pid: int | None, reason: str | None, waiting: str | None = None) -> None:
        condition = self.conditions[name]
        if condition.state != state:
            condition.state, condition.since = state, time.time()
        condition.pid = pid if state in ("starting", "ready", "degraded") else None
        condition.reason = reason if reason is not None else condition.reason
        condition.waiting = waiting


class _Backoff:
    """The pauses between restarts: they double while the part keeps ending soon after its start."""

    def __init__(self) -> None:
        self._pause = _FIRST_BACKOFF_S
        self._begun = time.monotonic()

    def begun(self) -> None:
        """The part is being started now."""
        self._begun = time.monotonic()

    def next(self) -> float:
        """How long to wait now."""
        if time.monotonic() - self._begun > _HEALTHY_AFTER_S:
            self._pause = _FIRST_BACKOFF_S
        pause, self._pause = self._pause, min(self._pause * 2, _LAST_BACKOFF_S)
        return pause


async def _why(part: Part) -> str:
    """What keeps a living part from being ready."""
    return await part.explain() if part.explain else tail(part.log).removeprefix(": ")


def kill_group(pid: int) -> None:
    """SIGKILL to what is left of the process group that this child led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def ended(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
