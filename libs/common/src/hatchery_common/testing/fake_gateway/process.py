"""The process around the stand-in: arguments, the lock on the state directory, signals and exit statuses."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from hatchery_common.testing.fake_gateway import VERSION
from hatchery_common.testing.fake_gateway.configuration import ConfigRejected, Configuration, read
from hatchery_common.testing.fake_gateway.gateway import Gateway
from hatchery_common.testing.fake_gateway.http_surface import Surface
from hatchery_common.testing.fake_gateway.wire import Server

_CONFIG_EXIT = 78
_DRAIN_S = 315
_RECOVERY_DELAY_S = 0.5
_OWNED = "StateDatabaseCoordinatorContentionError: another OpenClaw process owns gateway-lifecycle"


def main(arguments: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs `gateway run [--port N]` (or `--version`) and returns the exit status."""
    environment = os.environ if environment is None else environment
    if arguments == ["--version"]:
        print(f"OpenClaw {VERSION} (fake)")
        return 0
    if arguments[:2] != ["gateway", "run"]:
        print(f"unknown command: {' '.join(arguments)}", file=sys.stderr)
        return 1
    if "FAKE_GATEWAY_EXIT" in environment:
        return int(environment["FAKE_GATEWAY_EXIT"])
    state_dir = Path(environment["OPENCLAW_STATE_DIR"])
    config_path = Path(environment.get("OPENCLAW_CONFIG_PATH", str(state_dir / "openclaw.json")))
    try:
        configuration = read(config_path, environment, _port(arguments, environment))
        locks = _take_locks(state_dir)
    except ConfigRejected as error:
        print(error, file=sys.stderr, flush=True)
        return _CONFIG_EXIT
    try:
        return asyncio.run(_serve(configuration, state_dir, environment))
    finally:
        for lock in locks:
            os.close(lock)


def _port(arguments: list[str], environment: Mapping[str, str]) -> int | None:
    if "--port" in arguments:
        return int(arguments[arguments.index("--port") + 1])
    return int(environment["OPENCLAW_GATEWAY_PORT"]) if "OPENCLAW_GATEWAY_PORT" in environment else None


def _take_locks(state_dir: Path) -> list[int]:
    """Like the real gateway, three lock files outside of the state directory, never removed by their owner."""
    state_dir.mkdir(parents=True, exist_ok=True)
    directory = Path("/tmp") / f"openclaw-state-locks-{os.getuid()}"  # noqa: S108 - the real one ignores TMPDIR, too
    directory.mkdir(mode=0o700, exist_ok=True)
    database = state_dir.resolve() / "state" / "openclaw.sqlite"
    name = hashlib.sha256(str(database).encode()).hexdigest()[:8]
    taken: list[int] = []
    for family in ("gateway-lifecycle", "state-lifecycle", "state-handles"):
        handle = os.open(directory / f"{family}.{name}.lock.sqlite", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigRejected(f"Gateway failed to start: {_OWNED}") from None
        taken.append(handle)
    return taken


async def _serve(configuration: Configuration, state_dir: Path, environment: Mapping[str, str]) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    if environment.get("FAKE_GATEWAY_IGNORE_SIGTERM") != "1":
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        loop.add_signal_handler(signal.SIGINT, stopping.set)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    delay_ms = int(environment.get("FAKE_GATEWAY_READY_AFTER_MS", "0"))
    gateway = Gateway(configuration, state_dir, ready_after_ms=delay_ms)
    surface = Surface(gateway, never_ready=environment.get("FAKE_GATEWAY_NEVER_READY") == "1")
    server = Server(surface.handle, surface.upgrade, surface.refuse_upgrade)
    await server.start(configuration.host, configuration.port)
    print(f"[gateway] http server listening on {configuration.port}", flush=True)
    loop.call_later(delay_ms / 1000 + _RECOVERY_DELAY_S, gateway.runs.recover)
    if "FAKE_GATEWAY_CRASH_AFTER_MS" in environment:
        loop.call_later(int(environment["FAKE_GATEWAY_CRASH_AFTER_MS"]) / 1000, os._exit, 1)
    await stopping.wait()
    await _drain(gateway)
    await server.stop()
    return 0


async def _drain(gateway: Gateway) -> None:
    gateway.draining = True
    running = [run.task for run in gateway.runs.active if run.task is not None]
    if running:
        await asyncio.wait(running, timeout=_DRAIN_S)
    gateway.close_all()
    await asyncio.sleep(0.05)  # lets the closing frames leave
