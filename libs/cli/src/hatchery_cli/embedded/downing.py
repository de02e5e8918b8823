"""Stops a stack from outside: asks its `up` first, and stops by itself what an `up` that died left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.leftovers import stop_all
from hatchery_cli.embedded.processes import is_ours, wait_gone
from hatchery_cli.embedded.stack import is_owned
from hatchery_cli.embedded.state import read_state, write_stopped
from hatchery_cli.errors import StillRunning

_DEADLINE_S = 35.0
_EXIT_S = 5.0


def bring_down(layout: Layout, deadline_s: float = _DEADLINE_S) -> str:
    """Stop everything that belongs to this directory; returns a sentence about what was stopped, raises StillRunning."""
    if not layout.exists:
        return f"no stack was ever started in {layout.root}"
    started = time.monotonic()
    running = is_owned(layout)
    extra = _end_up(layout, deadline_s) if running else ""
    left, killed = stop_all(layout)
    layout.end_attempt()
    write_stopped(layout)
    if not running and not left:
        return f"nothing runs in {layout.root}"
    took = time.monotonic() - started
    extra += f"; {len(killed)} machines had to be killed" if killed else ""
    return f"stopped in {took:.1f} s; what should run starts again with the next up{extra}"


def _end_up(layout: Layout, deadline_s: float) -> str:
    """Ask the `up` of this directory to end; at the deadline kill it, lest it start again what we stop. Returns what to add."""
    end = time.monotonic() + deadline_s
    asked = _ask(layout)
    while is_owned(layout) and time.monotonic() < end:
        time.sleep(0.05)
        asked = asked or _ask(layout)  # it may only just have written who it is
    if not is_owned(layout):
        wait_gone(asked, _EXIT_S)  # it gives the directory up a moment before its interpreter is gone
        return ""
    if not asked or not all(_is_up(pid) for pid in asked):
        raise StillRunning(
            f"an `up` holds {layout.root} and did not end within {deadline_s:.0f} s, and its pid is not known",
            hint=f"find it with: fuser {layout.lock_file}; end it, then run `hatchery down` again",
        )
    for pid in asked:  # not its group: that may be the one of whoever started it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_gone(asked, _EXIT_S)
    return "; its `up` did not answer and had to be killed"


def _ask(layout: Layout) -> list[int]:
    """Tell the `up` of this directory to end; returns its pid, if it is known."""
    pid = (read_state(layout) or {}).get("pid")
    if not isinstance(pid, int) or not _is_up(pid):
        return []
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return [pid]


def _is_up(pid: int) -> bool:
    """Whether this pid is an `up`: a pid may have gone to another process since it was written down."""
    return is_ours(pid, ["hatchery_cli", "up"]) or is_ours(pid, ["hatchery", "up"])
