"""Stops a stack from outside: asks its `up` first, and stops by itself what an `up` that died left behind."""

from __future__ import annotations

import os
import signal
import time

from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.machines import controllers, stop_machines
from hatchery_cli.embedded.processes import wait_gone
from hatchery_cli.embedded.stack import is_owned, settle
from hatchery_cli.embedded.state import read_state

_DEADLINE_S = 35.0
_EXIT_S = 5.0


def bring_down(layout: Layout) -> str:
    """Stop everything that belongs to this directory; returns a sentence about what was stopped."""
    if not layout.exists:
        return f"no stack was ever started in {layout.root}"
    started = time.monotonic()
    running = is_owned(layout)
    if running:
        asked = _ask(layout)
        while is_owned(layout) and time.monotonic() - started < _DEADLINE_S:
            time.sleep(0.05)
        wait_gone(asked, _EXIT_S)  # it gives the directory up a moment before its interpreter is gone
    left = settle(layout) + len(controllers(layout.machines))
    killed = stop_machines(layout.machines)
    layout.end_attempt()
    if not running and not left:
        return f"nothing runs in {layout.root}"
    took = time.monotonic() - started
    extra = f"; {len(killed)} machines had to be killed" if killed else ""
    return f"stopped in {took:.1f} s; what should run starts again with the next up{extra}"


def _ask(layout: Layout) -> list[int]:
    """Tell the `up` of this directory to end; returns its pid, if there is one."""
    state = read_state(layout) or {}
    pid = state.get("pid")
    if not isinstance(pid, int):
        return []
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return []
    return [pid]
