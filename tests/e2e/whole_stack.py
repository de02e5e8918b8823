"""A whole stack for tests: real servers, all five services, the stand-in gateway; driven through the command line."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import psutil
from hatchery_cli.demo.leftovers import lock_files, lock_names
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import runtime_service_token
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.ports import free_port, give_back
from visitor import Visitor

TOPOLOGIES = ("one", "five")
SERVICES = ("api", "provisioner", "billing", "agent", "runtime-proxy")
_PORTS = 300  # what a stack may use, from its base port
_FAKE = {
    "HATCHERY_PROVISIONER_NODE": sys.executable,
    "HATCHERY_PROVISIONER_OPENCLAW": str(ENTRY),
    # A Python below a closed home directory cannot be run by other users.
    "HATCHERY_PROVISIONER_SEPARATE_USERS": "false",
    "HATCHERY_PROVISIONER_TRUST_ALL_USERS": "true",
}
_ELSEWHERE = ("HATCHERY_DIR", "HATCHERY_NATS_URL", "HATCHERY_ADMIN_DATABASE_URL", "HATCHERY_ROOT_KEY", "HATCHERY_CACHE")
_CACHE = {name: value for name, value in os.environ.items() if name == "HATCHERY_CACHE"}  # before any test changes it


def outside() -> dict[str, str]:
    """The environment without what points at another stack; the cache is the one that was named when the tests began."""
    return {name: value for name, value in os.environ.items() if name not in _ELSEWHERE} | _CACHE


class WholeStack:
    """One data directory and everything that `hatchery up` starts for it."""

    def __init__(self, directory: Path, *, topology: str = "one", environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.topology = topology
        self.port = 0
        self.options: list[str] = []
        self._visitors: list[Visitor] = []
        self.environment = {**outside(), **_FAKE, **(environment or {})}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of our commands on this stack."""
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hatchery_cli", *words, "--dir", str(self.directory)]

    def json(self, *words: str) -> dict[str, Any]:
        """What a command with --json says, whatever its exit code."""
        done = self(*words, "--json")
        assert done.stdout.strip(), done.stderr
        text = done.stdout.strip()
        return json.loads(text if text.startswith("{\n") else text.splitlines()[-1])

    def up(self) -> None:
        """Start it detached, on ports of its own."""
        self.port = self.port or free_port(span=_PORTS)
        topology = "--processes" if self.topology == "five" else "--one-process"
        done = self("up", "--detach", "--port", str(self.port), topology, *self.options)
        assert done.returncode == 0, done.stdout + done.stderr + self.log()

    def down(self) -> None:
        done = self("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        return self.json("status")

    @property
    def state(self) -> dict[str, Any]:
        """What `up` wrote last; cheaper than `status`, which asks the services, too."""
        return json.loads((self.directory / "run" / "state.json").read_text())

    @property
    def is_up(self) -> bool:
        """Whether the `up` of this directory lives and has said that it is ready."""
        return self.state["phase"] == "ready" and is_alive(self.state["pid"])

    @property
    def parts(self) -> set[str]:
        return set(SERVICES) if self.topology == "five" else {"services"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def machines(self) -> Path:
        return self.directory / "machines"

    def key(self, name: str) -> str:
        """One of the keys that the services of this stack hold (`website-jwt`, `oa-internal-key`, …)."""
        wanted = f"HATCHERY_KEY_{name.upper().replace('-', '_')}"
        for file in sorted((self.directory / "secrets").glob("*.env")):
            for line in file.read_text().splitlines():
                found, _, value = line.partition("=")
                if found == wanted:
                    return value.strip().strip("\"'")
        raise AssertionError(f"no service holds {wanted}")

    def token(self, user: str, *, secret: str | None = None, algorithm: str = "HS256", **claims: Any) -> str:
        """A website token; a claim given as None is left out."""
        now = int(time.time())
        said = {"sub": user, "iss": "hatchery", "aud": "hatchery", "iat": now, "exp": now + 3600}
        said |= {"env": self.environment.get("WORKER_ENV"), **claims}
        kept = {name: value for name, value in said.items() if value is not None}
        shared = self.environment.get("NEXTAUTH_SECRET") or self.key("website-jwt")
        return jwt.encode(kept, shared if secret is None else secret, algorithm=algorithm)

    def visitor(self, user: str, **claims: Any) -> Visitor:
        """A signed-in user of the website."""
        return self.caller(Authorization=f"Bearer {self.token(user, **claims)}")

    def caller(self, *, port: int = 0, **headers: str) -> Visitor:
        """Somebody with these headers (underscores stand for dashes) at the api, or at another port of the stack."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        made = Visitor(f"http://127.0.0.1:{self.port + port}", named)
        self._visitors.append(made)
        return made

    def runtime(self, user: str, **headers: str) -> Visitor:
        """The runtime API as one of our own services calls it for this user."""
        tenant = tenant_key(user)
        token = runtime_service_token(bytes.fromhex(self.key("runtime-service")), tenant)
        own = {"x_openagents_service_token": token, "x_oa_tenant_key": tenant}
        return self.caller(port=1, **{**own, **headers})

    def sql(self, service: str, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a service's own tables, read (or changed) with that service's own rights."""
        line = next(one for one in self.secrets_of(service) if one.startswith("HATCHERY_DATABASE_URL="))

        async def ask() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(line.partition("=")[2].strip("\"'"))
            try:
                await connection.execute(f"SET search_path = {service}")
                return [dict(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def secrets_of(self, service: str) -> list[str]:
        """The lines of a service's secrets file."""
        return (self.directory / "secrets" / f"{service}.env").read_text().splitlines()

    def close(self) -> None:
        """Close what visitors hold open."""
        for visitor in self._visitors:
            visitor.client.close()

    def root_of(self, instance_id: str) -> Path:
        """The directory of one instance's machine."""
        return self.machines / instance_id

    def controller_pid(self, instance_id: str) -> int:
        return int(json.loads((self.root_of(instance_id) / "controller.json").read_text())["pid"])

    def processes(self) -> list[str]:
        """Command lines of everything that runs for this directory."""
        found = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
        return [line for line in found if str(self.directory) in line]

    def log(self) -> str:
        texts = [path.read_text(errors="replace")[-3000:] for path in sorted((self.directory / "logs").glob("*.log"))]
        return "\n".join(texts)


@contextmanager
def whole_stack(topology: str = "one", **environment: str) -> Generator[WholeStack]:
    """A stack in a temporary directory, not started yet; at the end nothing of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="hatchery-e2e-"))
    directory.chmod(0o755)
    stack = WholeStack(directory / "stack", topology=topology, environment=environment)
    try:
        yield stack
    finally:
        stack.close()
        stack("down")
        left = stack.processes()
        for lock in lock_files(lock_names(stack.machines)):  # of instances that no test has deleted
            Path(lock).unlink(missing_ok=True)
        shutil.rmtree(directory)
    assert left == []
    if stack.port:
        give_back(stack.port, span=_PORTS)


def eventually(
    check: Callable[[], Any], seconds: float = 60, *, every: float = 0.1, explain: Callable[[], object] | None = None
) -> Any:
    """What the check returns once it is true; fails at the deadline, with what `explain` says then."""
    end = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > end:
            why = f": {explain()}" if explain is not None else ""
            raise AssertionError(f"it did not happen within {seconds:g} s{why}")
        time.sleep(every)
    return found


def run_for_a_charged_second() -> None:
    """Nothing is charged for less than a second of running, and a fast machine is up and down within one."""
    time.sleep(1.1)


def is_alive(pid: int) -> bool:
    """Whether this process runs; one that has ended and waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, how)
