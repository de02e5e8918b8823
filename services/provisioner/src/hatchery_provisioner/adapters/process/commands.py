"""Runs a command as a machine's user, in its home and with nothing of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from hatchery_common.log import redact_text

from hatchery_provisioner.adapters.process import identity
from hatchery_provisioner.domain.errors import DriverTransient
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.ports import ExecResult


async def run_as(uid: int | None, command: Sequence[str], *, home: Path, path: str, timeout_s: float) -> ExecResult:
    """The end of the command, its output redacted; killed with all its children after the timeout."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        env={"PATH": path, "HOME": str(home)},
        start_new_session=True,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        identity.kill_group(process.pid)
        await process.wait()
        raise DriverTransient(Reason.DRIVER_TIMEOUT, f"the command did not end within {timeout_s:g} s") from None
    return ExecResult(process.returncode or 0, redact_text(output.decode(errors="replace")))
