"""The composition root: opens the port, reads the boot bundle, supervises until told to stop.

Exit status: 0 stopped as asked, 2 wrong arguments, 65 no usable boot bundle, 69 own port taken, 73 directory unusable or
controlled by another process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from hatchery_controller.adapters import boot, disk, processes
from hatchery_controller.adapters.health import HttpHealth
from hatchery_controller.adapters.logs import LogStore
from hatchery_controller.adapters.server import HttpServer
from hatchery_controller.adapters.suspend import GatewaySuspend
from hatchery_controller.board import Board
from hatchery_controller.domain.bundle import Bundle, BundleInvalid, parse_bundle, service_token_of
from hatchery_controller.domain.ladder import Ladder, Moment, Reason
from hatchery_controller.domain.layout import Layout
from hatchery_controller.domain.redaction import Redactor
from hatchery_controller.routes import Routes, error_body
from hatchery_controller.settings import Settings, read_settings
from hatchery_controller.supervisor import Pace, Supervisor, Tools

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

LOOPBACK = "127.0.0.1"
_LAST_ANSWERS = 0.5


def run() -> None:
    """Runs one controller with this process's arguments and environment."""
    settings = read_settings(sys.argv[1:], os.environ)
    layout = Layout(settings.root)
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=64)
    except OSError as error:
        sys.exit(_complain(69, f"cannot listen on port {settings.port}: {error.strerror}"))
    try:
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with disk.sole_owner(layout) as alone:
            if not alone:
                sys.exit(_complain(73, "another controller owns this directory"))
            sys.exit(asyncio.run(_serve(settings, layout, listener)))
    except OSError as error:
        sys.exit(_complain(73, f"cannot use the machine's directory: {error}"))


class Switch:
    """The Control of the API and of signals: wishes are kept until there is a supervisor to hear them."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self.stopped = asyncio.Event()

    def stop(self, deadline: float | None) -> None:
        self.stopped.set()
        if self.supervisor is not None:
            self.supervisor.stop(deadline)

    def restart(self, why: str) -> bool:
        return self.supervisor is not None and self.supervisor.restart(why)

    def gateway_pid(self) -> int | None:
        return None if self.supervisor is None else self.supervisor.gateway_pid


def _now() -> Moment:
    return Moment(time.time_ns() // 1_000_000, time.monotonic())


async def _serve(settings: Settings, layout: Layout, listener: socket.socket) -> int:
    logs = LogStore(settings.log_bytes)
    board = Board(Ladder(settings.limits, _now()))
    switch = Switch()
    routes = Routes(board, switch, logs.tail)
    server = HttpServer(routes, error_body)
    await server.start(listener)
    _obey_signals(switch)
    try:
        raw = await _unless_stopped(switch, _read_bundle(settings))
        if raw is None:
            return 0
        return await _live(settings, layout, raw, board=board, switch=switch, routes=routes, logs=logs)
    except BundleInvalid as error:
        return _complain(65, str(error))
    finally:
        await server.close(_LAST_ANSWERS)
        layout.record.unlink(missing_ok=True)
        logs.close()


async def _live(
    settings: Settings, layout: Layout, raw: bytes, *, board: Board, switch: Switch, routes: Routes, logs: LogStore
) -> int:
    token = service_token_of(raw)
    if token is None:
        parse_bundle(raw)  # says what is wrong
        raise BundleInvalid("bundle.service_token is missing or malformed")
    routes.let_in(token)
    logs.redact_with(Redactor([token]))
    try:
        bundle = parse_bundle(raw)
    except BundleInvalid as error:
        # Whoever holds the token shall read why, so stay until told to go.
        board.ladder.failed(Reason.BUNDLE_INVALID, str(error), _now())
        board.publish()
        await switch.stopped.wait()
        board.ladder.stopped(_now())
        board.publish()
        return 0
    board.machine_id = bundle.machine_id
    logs.redact_with(Redactor(_secrets(bundle)))
    _clean_up_after_predecessor(layout, logs)
    try:
        layout.logs.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        pass  # the supervisor meets the same trouble and reports it
    logs.open(layout.logs / "gateway.log")
    supervisor = _supervisor(bundle, settings, layout, board=board, logs=logs)
    switch.supervisor = supervisor
    if switch.stopped.is_set():  # the wish came in the very moment in which the bundle did
        supervisor.stop(None)
    processes.adopt_strays()
    try:
        await supervisor.run()
    finally:
        supervisor.abandon()
    return 0


def _supervisor(bundle: Bundle, settings: Settings, layout: Layout, *, board: Board, logs: LogStore) -> Supervisor:
    gateway = bundle.gateway
    host = LOOPBACK if gateway.bind == "loopback" else ""
    launcher = processes.ProcessLauncher(
        cwd=layout.workspace, uid=gateway.uid, gid=gateway.gid, host=host, after_end=processes.end_strays
    )
    tools = Tools(
        launcher=launcher,
        disk=disk.LocalDisk(settings.port),
        health=HttpHealth(settings.probe_timeout),
        suspend=GatewaySuspend(),
        log=logs,
        clock=_now,
    )
    pace = Pace(
        probe_starting=settings.probe_starting, probe_steady=settings.probe_steady, stop_deadline=settings.stop_deadline
    )
    return Supervisor(bundle, layout, board=board, tools=tools, pace=pace)


async def _read_bundle(settings: Settings) -> bytes:
    if settings.boot_file is not None:
        return boot.read_file(settings.boot_file)
    assert settings.boot_fd is not None
    return await boot.read_pipe(settings.boot_fd, settings.boot_deadline)


async def _unless_stopped(switch: Switch, reading: Coroutine[Any, Any, bytes]) -> bytes | None:
    read = asyncio.ensure_future(reading)
    stopped = asyncio.ensure_future(switch.stopped.wait())
    await asyncio.wait({read, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if read.done():
        return read.result()
    read.cancel()
    return None


def _obey_signals(switch: Switch) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, switch.stop, None)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the terminal of our starter may go, we stay
    loop.add_signal_handler(signal.SIGCHLD, processes.reap_strays, switch.gateway_pid)


def _clean_up_after_predecessor(layout: Layout, logs: LogStore) -> None:
    left = disk.read_record(layout)
    if processes.end_orphaned_gateway(left.get("gateway_pid"), left.get("gateway_started_ticks")):
        logs.write("controller", "ended the gateway of a controller that had died")


def _secrets(bundle: Bundle) -> list[str]:
    return [bundle.service_token, bundle.model.token, bundle.gateway.user_header, *bundle.environment.values()]


def _complain(status: int, message: str) -> int:
    try:
        sys.stderr.write(f"hatchery-controller: {message}\n")
    except OSError:
        pass  # whoever started us may be gone
    return status
