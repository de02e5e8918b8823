"""Checks on directories and ports before anything is started, each with its remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import psutil

from hatchery_cli.errors import DiskFull, PlaceUnusable, PortTaken


def closed_ancestor(path: Path) -> Path | None:
    """The first directory above (or at) `path` that other users of this machine may not pass through."""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        if place.exists() and not place.stat().st_mode & stat.S_IXOTH:
            return place
    return None


def require_writable(place: Path, *, others: bool) -> None:
    """Create the directory if need be; raises PlaceUnusable when it cannot be written or (others) not be passed through."""
    try:
        if not place.exists():
            place.mkdir(mode=0o755, parents=True, exist_ok=True)  # another start may be as fast
            place.chmod(0o755)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no space left for {place}", hint="free some space, or choose another directory") from error
        raise PlaceUnusable(
            f"cannot create {place}: {error.strerror}", hint="choose another directory with --dir (or HATCHERY_CACHE)"
        ) from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise PlaceUnusable(f"cannot write to {place}", hint="choose another directory, or change its owner")
    if others and (closed := closed_ancestor(place)):
        raise PlaceUnusable(
            f"{closed} is closed to other users, and as root Postgres and every machine run under a user of their own "
            f"that must pass through it to {place}",
            hint=f"choose a directory such as /var/lib/hatchery/<name>, or run: chmod o+x {closed}",
        )


def free_mib(place: Path) -> int:
    """Free space, in MiB, of the file system that holds (or will hold) this directory."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free // 1024**2


def require_room(place: Path, mib: int) -> None:
    """Raises DiskFull when less than this much is free."""
    if (free := free_mib(place)) < mib:
        raise DiskFull(
            f"{place} has {free} MiB free, at least {mib} MiB are needed",
            hint="free some space, or choose another directory (--dir for data, HATCHERY_CACHE for installations)",
        )


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether we could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listeners(port: int) -> list[int | None]:
    """Pids of those who listen on this port; None for one that we may not see."""
    try:
        found = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return []
    return [one.pid for one in found if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port]


def holder(port: int) -> str:
    """Who listens on this port, as far as we may see."""
    for pid in listeners(port):
        with contextlib.suppress(psutil.Error):
            return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "another user's process"
    return "another process"


def require_ports(ports: Mapping[str, int]) -> None:
    """Raises PortTaken for the first of these ports that is in use."""
    for name, port in ports.items():
        if not is_port_free(port):
            raise PortTaken(
                f"port {port} ({name}) is in use by {holder(port)}",
                hint="stop that process, or choose other ports with --port (the stack uses PORT to PORT+299)",
            )
