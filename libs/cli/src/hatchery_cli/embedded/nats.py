"""nats-server from its wheel: JetStream with every write synced, loopback only, users from `hatchery bus config`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

from hatchery_cli.embedded.layout import write_private
from hatchery_cli.embedded.processes import is_ours, read_pid, stop_group
from hatchery_cli.embedded.supervisor import PROBE_S, Part
from hatchery_cli.errors import PythonBroken

AUTHORIZATION = "authorization.conf"


def binary() -> Path:
    """The server inside this virtual environment."""
    beside = Path(sys.executable).with_name("nats-server")
    found = beside if beside.exists() else Path(shutil.which("nats-server") or "/nonexistent")
    if not found.exists():
        raise PythonBroken(
            "nats-server is not installed beside this Python", hint="remove .venv and run ./hatchery again"
        )
    return found


def render(directory: Path, port: int, log: Path) -> str:
    """The server's configuration; the authorization block is a file of its own that can be reloaded."""
    quoted = {name: json.dumps(str(directory / name)) for name in ("nats.pid", "jetstream")}
    return f"""# Written by hatchery up; edits are lost.
host: 127.0.0.1
port: {port}
server_name: hatchery
pid_file: {quoted["nats.pid"]}
log_file: {json.dumps(str(log))}
logfile_size_limit: 20MB
logfile_max_num: 3
max_payload: 1MB
jetstream {{
  store_dir: {quoted["jetstream"]}
  # Without this an acknowledged message may be lost at power loss.
  sync_interval: always
  max_mem: 64MB
  max_file: 20GB
}}
include "{AUTHORIZATION}"
"""


def write_config(directory: Path, port: int, log: Path) -> Path:
    """Write the configuration; until `bus config` has rendered the users, nobody at all may connect."""
    if not (directory / AUTHORIZATION).exists():
        write_authorization(directory, f'authorization {{ user: "nobody", password: "{secrets.token_hex(32)}" }}\n')
    path = directory / "nats.conf"
    write_private(path, render(directory, port, log))
    return path


def write_authorization(directory: Path, text: str) -> bool:
    """Write the authorization block; returns whether it changed. A running server must then be told by `reload`."""
    path = directory / AUTHORIZATION
    if path.exists() and path.read_text() == text:
        return False
    write_private(path, text)
    return True


def reload(directory: Path) -> None:
    """Make the running server read its configuration again."""
    pid = read_pid(directory / "nats.pid")
    if pid is not None and is_ours(pid, ["nats-server"]):
        os.kill(pid, signal.SIGHUP)


def living(directory: Path) -> list[int]:
    """The pid of the server of this directory, while it runs."""
    pid = read_pid(directory / "nats.pid")
    return [pid] if pid is not None and is_ours(pid, [str(directory / "nats.conf")]) else []


def settle(directory: Path, within_s: float = 10.0) -> int:
    """Stop a server of ours that an earlier run left, and remove its pid file; returns how many were stopped."""
    left = living(directory)
    stop_group(left, signal.SIGTERM, within_s)
    (directory / "nats.pid").unlink(missing_ok=True)
    return len(left)


def part(directory: Path, port: int, log: Path) -> Part:
    """The server for the supervisor."""
    return Part(
        name="nats",
        argv=(str(binary()), "-c", str(directory / "nats.conf")),
        environment={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(directory)},
        log=log,
        ready=lambda: answers(port),
        before=lambda: settle(directory),
    )


async def answers(port: int) -> bool:
    """Whether the server greets (it does so only when JetStream is up)."""
    try:
        async with asyncio.timeout(PROBE_S):
            return await _greets(port)
    except OSError:  # TimeoutError is one
        return False


async def _greets(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return (await reader.read(4)) == b"INFO"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
