"""The directories of one machine. The gateway's user owns some of them, so nothing here follows a link it may have planted."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hatchery_controller.adapters.processes import started

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatchery_controller.domain.layout import Layout

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class LocalDisk:
    """The Disk port on a local file system."""

    def __init__(self, port: int) -> None:
        self._port = port

    def prepare(self, layout: Layout, uid: int | None, gid: int | None) -> None:
        # Another user must pass through the root directory to reach its own ones.
        layout.root.chmod(0o700 if uid is None else 0o711)
        layout.logs.mkdir(mode=0o700, exist_ok=True)
        for path in layout.of_gateway:
            path.mkdir(mode=0o700, exist_ok=True)
            if uid is not None and gid is not None:
                _give(path, uid, gid)

    def write_config(self, layout: Layout, config: dict[str, Any], uid: int | None, gid: int | None) -> None:
        write_private(layout.config, json.dumps(config, indent=2).encode(), uid, gid)

    def record(self, layout: Layout, machine_id: str | None, gateway_pid: int | None) -> None:
        """Who we are, for whoever adopts or cleans up after us: pids count only together with their start times."""
        record: dict[str, Any] = {"pid": os.getpid(), "port": self._port, "machine_id": machine_id}
        record |= _times("", os.getpid()) | {"gateway_pid": gateway_pid}
        if gateway_pid is not None:
            record |= _times("gateway_", gateway_pid)
        write_private(layout.record, json.dumps(record).encode(), None, None)

    def version_of(self, openclaw: str) -> str | None:
        try:
            package: object = json.loads(Path(openclaw).with_name("package.json").read_bytes())
        except (OSError, ValueError):
            return None
        version = cast("dict[str, Any]", package).get("version") if isinstance(package, dict) else None
        return version if isinstance(version, str) else None


def write_private(path: Path, content: bytes, uid: int | None, gid: int | None) -> None:
    """Replaces a file atomically, mode 0600. The directory itself must be no link; a link at `path` is replaced."""
    directory = os.open(path.parent, _DIRECTORY)
    temporary = f".{path.name}.{os.getpid()}"
    try:
        _remove(temporary, directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        file = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(content)
                if uid is not None and gid is not None:
                    os.fchown(out.fileno(), uid, gid)
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            _remove(temporary, directory)
            raise
    finally:
        os.close(directory)


@contextmanager
def sole_owner(layout: Layout) -> Generator[bool]:
    """Whether this process alone controls the directory; the kernel takes the lock back whichever way we end."""
    file = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def read_record(layout: Layout) -> dict[str, Any]:
    """What a former controller of this directory left behind; empty when there is nothing sensible."""
    try:
        record: object = json.loads(layout.record.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", record) if isinstance(record, dict) else {}


def _remove(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _times(prefix: str, pid: int) -> dict[str, int | None]:
    ticks, wall_ms = started(pid) or (None, None)
    return {f"{prefix}started_ticks": ticks, f"{prefix}started_at_ms": wall_ms}


def _give(path: Path, uid: int, gid: int) -> None:
    """Hands a tree over, link by link and without following any; a tree that is already theirs is left alone."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(f"{path.name} of this machine is not a directory")
    if (info.st_uid, info.st_gid) == (uid, gid):
        return
    for _, names, files, directory in os.fwalk(path, topdown=False, follow_symlinks=False):
        for name in (*names, *files):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    os.chown(path, uid, gid, follow_symlinks=False)
