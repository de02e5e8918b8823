"""A stack to measure: started by the command line in a directory of its own, on the product's own cache."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from hatchery_cli.demo.website import Website
from hatchery_cli.embedded.layout import SERVICES, Layout, Ports
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.ports import free_port, give_back

_PORTS = 300  # what a stack may use, from its base port
CHECKOUT = Path(__file__).resolve().parents[2]
FAKE = {
    "HATCHERY_PROVISIONER_NODE": sys.executable,
    "HATCHERY_PROVISIONER_OPENCLAW": str(ENTRY),
    "HATCHERY_PROVISIONER_SEPARATE_USERS": "false",  # a Python below a closed home cannot be run by other users
    "HATCHERY_PROVISIONER_TRUST_ALL_USERS": "true",
}
_ELSEWHERE = ("HATCHERY_DIR", "HATCHERY_NATS_URL", "HATCHERY_ADMIN_DATABASE_URL", "HATCHERY_ROOT_KEY")


class Rig:
    """One data directory and what runs for it."""

    def __init__(self, directory: Path, *, fake: bool = False) -> None:
        self.layout = Layout(directory)
        self.ports = Ports(free_port(span=_PORTS))
        inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
        self.environment = inherited | (FAKE if fake else {})

    def hatchery(self, *words: str, command: Sequence[str] = (), timeout_s: float = 600) -> str:
        """Run one of our commands on this stack; its standard output."""
        line = [*(command or (sys.executable, "-m", "hatchery_cli")), *words, "--dir", str(self.layout.root)]
        done = subprocess.run(
            line, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def up(self, *, command: Sequence[str] = ()) -> float:
        """Start it detached; the seconds that took."""
        began = time.monotonic()
        self.hatchery("up", "--detach", "--port", str(self.ports.base), command=command)
        return time.monotonic() - began

    def down(self, *, command: Sequence[str] = ()) -> float:
        """Stop it; the seconds that took."""
        began = time.monotonic()
        self.hatchery("down", command=command)
        return time.monotonic() - began

    def website(self, user: str) -> Website:
        """A signed-in user."""
        token = self.hatchery("token", "create", "--user", user).strip()
        return Website(f"http://127.0.0.1:{self.ports.api}", token)

    def pid(self, part: str) -> int:
        """The process of a part of the stack: `services`, `nats` or `postgres`."""
        return int(json.loads(self.layout.state_file.read_text())["parts"][part]["pid"])

    def machine(self, instance_id: str) -> Path:
        """The directory of an instance's machine."""
        return self.layout.machines / instance_id


@contextmanager
def rig(*, fake: bool = False, started: bool = True) -> Generator[Rig]:
    """A stack in a temporary directory; at the end it is stopped and removed."""
    directory = Path(tempfile.mkdtemp(prefix="hatchery-bench-"))
    directory.chmod(0o711)  # machines of other users pass through it
    made = Rig(directory / "stack", fake=fake)
    try:
        if started:
            made.up()
        yield made
    finally:
        made.hatchery("down")
        shutil.rmtree(directory, ignore_errors=True)
        give_back(made.ports.base, span=_PORTS)


def operation(site: Website, answer: dict[str, Any], *, deadline_s: float = 300) -> None:
    """Follow the operation of an accepted wish to its end; raises when that is not `finished`."""
    path = f"/api/operations/{answer['operation']['operation_id']}/events"
    *_, last = [None, *site.follow(path, deadline_s)]
    if last is None or last.event != "finished":
        raise RuntimeError(f"the operation ended with {last}")


def compile_sources() -> None:
    """Byte-compile our own sources as ./hatchery does before each start."""
    places = [str(path) for path in CHECKOUT.glob("*/*/src")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "compileall", "-q", *places], env=environment, check=True)


def ready_ports(ports: Ports) -> list[int]:
    """The health ports of all services."""
    return [ports.health(name) for name in SERVICES]


def answers_ok(port: int, path: str) -> bool:
    """Whether a GET on loopback is answered with 200, on a connection of its own."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(64).split(b" ", 2)[1:2] == [b"200"]
    except OSError:
        return False


def until(port: int, path: str, *, deadline_s: float, every_s: float) -> None:
    """Wait for a 200."""
    end = time.monotonic() + deadline_s
    while not answers_ok(port, path):
        if time.monotonic() > end:
            raise RuntimeError(f"port {port} does not answer 200 on {path} within {deadline_s:g} s")
        time.sleep(every_s)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]
