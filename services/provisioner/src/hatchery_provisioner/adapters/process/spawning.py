"""Starts controllers: in a session of their own, with the boot bundle on an inherited pipe and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchery_provisioner.adapters.process.directory import InstanceDirectory
from hatchery_provisioner.adapters.process.leases import Lease
from hatchery_provisioner.domain.errors import DriverPermanent, DriverTransient
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.ports import BootSecrets

_PIPE_BYTES = 1024 * 1024
_children: dict[int, subprocess.Popen[bytes]] = {}


def bundle(
    machine_id: str, lease: Lease, secrets: BootSecrets, *, node: str, openclaw: str, environment: dict[str, str]
) -> bytes:
    """The boot bundle of one machine on this host."""
    document: dict[str, Any] = {
        "machine_id": machine_id,
        "service_token": secrets.service_token,
        "gateway": {
            "port": lease.port,
            "bind": "loopback",
            "node": node,
            "openclaw": openclaw,
            "uid": lease.uid,
            "gid": lease.uid,
            "user_header": secrets.user_header,
            "required_headers": ["x-forwarded-proto"],
            "trusted_proxies": ["127.0.0.1"],
            "allow_loopback": True,
            "owner": secrets.owner,
            "service": secrets.service,
            "allowed_origins": [],
        },
        "model": secrets.model,
        "overrides": secrets.overrides,
        "environment": {**environment, **secrets.environment},
        "sealed": None,
    }
    return json.dumps(document).encode()


def spawn(directory: InstanceDirectory, lease: Lease, boot: bytes) -> int:
    """Start a controller and return its pid. The bundle fills the pipe first, so no death of ours cuts it short."""
    reading, writing = os.pipe()
    try:
        if len(boot) > 60_000:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.write(writing, boot)
        os.close(writing)
        writing = -1
        command = [sys.executable, "-m", "hatchery_controller", "--boot-fd", str(reading)]
        command += ["--port", str(lease.controller_port), "--root", str(directory.root)]
        with directory.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,),
                cwd="/",
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
    except OSError as error:
        raise refused(error, "starting the controller") from error
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)
    _children[process.pid] = process
    return process.pid


def reap() -> None:
    """Collect controllers of ours that have ended; those of an earlier life are collected by init."""
    for pid, process in list(_children.items()):
        if process.poll() is not None:
            del _children[pid]


def refused(error: OSError, doing: str) -> DriverPermanent | DriverTransient:
    """What an error of the operating system means for a machine."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DriverPermanent(Reason.DISK_FULL, f"no space left while {doing}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DriverPermanent("storage_unwritable", f"not permitted while {doing}: {error.strerror}")
    return DriverTransient("host_refused", f"{error.strerror or type(error).__name__} while {doing}")


def is_free(port: int) -> bool:
    """Whether somebody could listen on this port of loopback now."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def free_bytes(path: Path) -> int:
    """Free space for us on the file system of this path."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
