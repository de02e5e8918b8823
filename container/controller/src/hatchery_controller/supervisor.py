"""Runs the gateway of one machine: configures it, starts it, watches it, starts it again, and stops it."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hatchery_controller.domain.environment import EnvironmentRefused, gateway_environment, open_sealed
from hatchery_controller.domain.ladder import Phase, Reason
from hatchery_controller.domain.template import render_config
from hatchery_controller.domain.words import newest_lines, with_words

if TYPE_CHECKING:
    from hatchery_controller.board import Board
    from hatchery_controller.domain.bundle import Bundle
    from hatchery_controller.domain.ladder import Ladder
    from hatchery_controller.domain.layout import Layout
    from hatchery_controller.ports import Clock, Disk, GatewayProcess, Health, Launcher, Log, Suspend

SUSPEND_DEADLINE = 2.0
_KEPT_LINES = 40
_ANSWERING = (Phase.LIVE, Phase.READY, Phase.DEGRADED)
_KEPT_TEXT = 1800
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Tools:
    """The outside world of one supervisor."""

    launcher: Launcher
    disk: Disk
    health: Health
    suspend: Suspend
    log: Log
    clock: Clock


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how long, in seconds."""

    probe_starting: float = 0.1
    probe_steady: float = 5
    stop_deadline: float = 20
    kill_grace: float = 5  # for a gateway that never came up and has nothing to save


class Supervisor:
    """One gateway, until it is told to stop."""

    def __init__(self, bundle: Bundle, layout: Layout, *, board: Board, tools: Tools, pace: Pace) -> None:
        self._bundle = bundle
        self._layout = layout
        self._board = board
        self._tools = tools
        self._pace = pace
        self._wake = asyncio.Event()
        self._restart = False
        self._stop_at: float | None = None
        self._answered = False  # whether there was somebody to say goodbye to when the stop came
        self._process: GatewayProcess | None = None
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def gateway_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def stop(self, deadline: float | None) -> None:
        """Stops the gateway, then `run` returns. A second wish can only shorten the time."""
        at = self._tools.clock().steady + (self._pace.stop_deadline if deadline is None else deadline)
        if self._stop_at is None:
            self._answered = self._board.state.phase in _ANSWERING
        self._stop_at = at if self._stop_at is None else min(at, self._stop_at)
        self._ladder.stopping(self._tools.clock())
        self._publish()
        self._wake.set()

    def restart(self, why: str) -> bool:
        if self._stop_at is not None:
            return False
        self._note(f"restart requested: {why}" if why else "restart requested")
        self._restart = True
        self._wake.set()
        return True

    def abandon(self) -> None:
        """Leaves no gateway behind, whatever went wrong here."""
        if self._process is not None:
            self._process.kill()

    async def run(self) -> None:
        """Returns when the gateway has been stopped."""
        while self._stop_at is None:
            self._restart = False
            self._wake.clear()
            wait = await self._one_life() if await self._start() else None
            self._publish()
            if self._stop_at is None and not self._restart:
                await self._woken(wait)
            if self._restart:
                self._ladder.restarting("", self._tools.clock())
        self._ladder.stopped(self._tools.clock())
        self._publish()

    @property
    def _ladder(self) -> Ladder:
        return self._board.ladder

    async def _start(self) -> bool:
        """Writes the configuration and starts the gateway; False when that failed and the reason is shown."""
        try:
            await self._launch()
        except EnvironmentRefused as refused:
            self._fail(refused.reason, str(refused))
        except OSError as error:
            full = error.errno in _FULL
            reason = Reason.STORAGE_FULL if full else Reason.STORAGE_UNWRITABLE
            self._fail(reason, f"cannot prepare the machine's directories: {error.strerror or error}")
        return self._process is not None

    async def _launch(self) -> None:
        self._process = None
        self._tail.clear()
        bundle, gateway, disk = self._bundle, self._bundle.gateway, self._tools.disk
        environment = {**open_sealed(bundle.sealed), **gateway_environment(bundle, self._layout)}
        config, self._board.ignored_overrides = render_config(bundle, self._layout)
        for path in self._board.ignored_overrides:
            self._note(f"override ignored, the operator decides it: {path}")
        disk.prepare(self._layout, gateway.uid, gateway.gid)
        disk.write_config(self._layout, config, gateway.uid, gateway.gid)
        self._note("configuration written")
        self._ladder.configured(self._tools.clock())
        self._publish()
        if not await self._tools.launcher.port_is_free(gateway.port):
            self._fail(Reason.PORT_TAKEN, f"another process listens on port {gateway.port}")
            return
        if self._stop_at is not None:
            return
        command = [gateway.node, gateway.openclaw, "gateway", "run"]
        self._note("starting the OpenClaw gateway")
        try:
            self._process = self._tools.launcher.start(command, environment, self._line)
        except OSError as error:
            self._fail(Reason.NOT_STARTABLE, f"cannot start {gateway.node}: {error.strerror or error}")
            return
        self._ladder.spawned(self._process.pid, self._tools.clock())
        self._publish()
        self._ladder.knows_version(disk.version_of(gateway.openclaw), self._tools.clock())
        self._publish()
        try:
            disk.record(self._layout, bundle.machine_id, self._process.pid)
        except OSError as error:
            self._note(f"cannot record the gateway's process: {error.strerror or error}")

    async def _one_life(self) -> float | None:
        """From start to end of one gateway: the seconds to wait before the next one, None to wait for a wish."""
        process = self._process
        assert process is not None
        ended = asyncio.ensure_future(process.wait())
        watch = asyncio.ensure_future(self._watch())
        woken = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait({ended, watch, woken}, return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        woken.cancel()
        await asyncio.wait({watch, woken})
        if ended.done():
            return self._after_exit(ended.result())
        if self._wake.is_set():
            await self._end_wished(process)
            return None
        reason = watch.result()
        code = await self._end(process, self._tools.clock().steady + self._pace.kill_grace)
        return self._after_overdue(reason, code)

    async def _watch(self) -> Reason:
        """Probes until a phase has lasted too long; every phase that can wait for ever is a good one."""
        while True:
            probe = await self._tools.health(self._bundle.gateway.port)
            now = self._tools.clock()
            before = self._board.state.phase
            self._ladder.probed(probe, now)
            if self._board.state.phase is not before:
                self._note(f"{before} -> {self._board.state.phase} {probe.detail}".rstrip())
            self._publish()
            if reason := self._ladder.overdue(now):
                return reason
            starting = self._board.state.phase in (Phase.CONFIGURED, Phase.LIVE)
            await asyncio.sleep(self._pace.probe_starting if starting else self._pace.probe_steady)

    def _after_exit(self, code: int) -> float | None:
        wait = self._ladder.exited(code, self._text(), self._tools.clock())
        self._note(f"the gateway ended with {code}; " + ("no restart" if wait is None else f"next start in {wait:g} s"))
        return wait

    def _after_overdue(self, reason: Reason, code: int) -> float | None:
        self._note(f"the gateway was ended: {reason}")
        if reason is Reason.UNRESPONSIVE:
            return self._ladder.exited(code, "it had not answered for too long", self._tools.clock())
        self._ladder.ended(code, self._tools.clock())
        what = (
            "the gateway did not answer in time"
            if reason is Reason.NEVER_LIVE
            else "the gateway did not get ready in time"
        )
        self._ladder.failed(reason, with_words(what, self._text()), self._tools.clock())
        return None

    async def _end_wished(self, process: GatewayProcess) -> None:
        now = self._tools.clock()
        answered, deadline = self._answered, self._stop_at
        if deadline is None:
            answered = self._board.state.phase in _ANSWERING
            self._ladder.restarting("", now)
            self._publish()
            deadline = now.steady + self._pace.stop_deadline
        if answered and (left := min(SUSPEND_DEADLINE, deadline - now.steady)) > 0:
            self._note(f"suspend: {await self._tools.suspend(self._bundle, left)}")
        code = await self._end(process, deadline)
        self._ladder.ended(code, self._tools.clock())
        self._note(f"the gateway was stopped ({code})")

    async def _end(self, process: GatewayProcess, deadline: float) -> int:
        """SIGTERM, then SIGKILL for the whole group at the deadline, which a stop may bring nearer meanwhile."""
        process.terminate()
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            self._wake.clear()
            if self._stop_at is not None:
                deadline = min(deadline, self._stop_at)
            left = deadline - self._tools.clock().steady
            if left <= 0:
                process.kill()
                break
            woken = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({ended, woken}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
        return await ended

    async def _woken(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _fail(self, reason: str, message: str) -> None:
        self._note(f"failed: {reason}: {message}")
        self._ladder.failed(reason, message, self._tools.clock())
        self._publish()

    def _line(self, line: str) -> None:
        self._tail.append(line)
        self._tools.log.write("gateway", line)

    def _text(self) -> str:
        """The gateway's own last words, for people: still to be redacted."""
        said = self._tools.log.redacted("\n".join(line for line in self._tail if line.strip()))
        return newest_lines(said, _KEPT_TEXT)

    def _note(self, line: str) -> None:
        self._tools.log.write("controller", line)

    def _publish(self) -> None:
        self._board.publish()
