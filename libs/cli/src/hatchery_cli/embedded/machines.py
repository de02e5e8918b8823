"""The machines of the process driver as seen by the stack: found by their command lines, stopped all at once."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil

from hatchery_cli.embedded.processes import stop_group

_CONTROLLER = "hatchery_controller"
MACHINES_STOP_S = 20.0
GATEWAYS_STOP_S = 3.0
_STATE_DIR = "OPENCLAW_STATE_DIR"


def controllers(machines: Path) -> list[int]:
    """Pids of the controllers whose root lies in this directory."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if _CONTROLLER in words and "--root" in words[:-1]:
                root = Path(words[words.index("--root") + 1])
                if root.is_relative_to(machines) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
    return found


def gateways(machines: Path) -> list[int]:
    """Pids of gateways, and what they started, whose state lies in this directory."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            state = process.environ().get(_STATE_DIR)
            if state and Path(state).is_relative_to(machines) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def stop_machines(machines: Path, deadline_s: float = MACHINES_STOP_S) -> list[int]:
    """Ask every controller to stop its gateway and end; what is left at the deadline is killed. Returns the killed ones.

    Gateways without a controller get GATEWAYS_STOP_S more.
    """
    killed = stop_group(controllers(machines), signal.SIGTERM, deadline_s)
    left = gateways(machines)  # of a controller that had died, or that we killed
    stop_group(left, signal.SIGTERM, GATEWAYS_STOP_S if left else 0.0)
    return killed
