"""`down` when the `up` of a directory is dead, deaf, or unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hatchery_cli.commands.status import collect
from hatchery_cli.embedded.downing import bring_down
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.embedded.state import StateFile, read_state
from hatchery_cli.embedded.supervisor import Condition
from hatchery_cli.errors import StillRunning

DEAF = """
import fcntl, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def deaf(layout: Layout, *words: str) -> Generator[int]:
    """A process that holds the directory and does not end on SIGTERM."""
    command = [sys.executable, "-c", DEAF, str(layout.lock_file), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        layout.state_file.write_text(json.dumps({"phase": "ready", "pid": child.pid, "parts": {}, "events": []}))
        yield child.pid
        child.kill()


def test_a_deaf_up_is_killed_at_the_deadline(layout: Layout) -> None:
    layout.root_key()
    with deaf(layout, "hatchery_cli", "up"):
        assert "had to be killed" in bring_down(layout, 0.5)
        assert "nothing runs" in bring_down(layout, 0.5)
    state = read_state(layout)
    assert state is not None
    assert state["phase"] == "stopped"


def test_what_holds_the_directory_and_is_no_up_is_named_and_left_alone(layout: Layout) -> None:
    layout.root_key()
    with deaf(layout, "something", "else"):
        with pytest.raises(StillRunning, match="did not end within") as caught:
            bring_down(layout, 0.3)
        assert str(layout.lock_file) in (caught.value.hint or "")
        state = read_state(layout)
        assert state is not None
        assert state["phase"] == "ready"


def test_an_abandoned_stack_that_was_brought_down_is_stopped(layout: Layout) -> None:
    layout.root_key()
    state = StateFile(layout, Choices())
    state.part("nats", Condition("ready", pid=1))
    state.phase("ready")
    assert collect(layout)["phase"] == "abandoned"
    bring_down(layout)
    body = collect(layout)
    assert body["phase"] == "stopped"
    assert body["error"] is None
    assert body["parts"]["nats"]["state"] == "stopped"


def test_why_a_start_failed_is_still_shown_after_down(layout: Layout) -> None:
    layout.root_key()
    StateFile(layout, Choices()).phase("failed", {"code": "port_taken", "message": "taken", "hint": None})
    bring_down(layout)
    assert collect(layout)["error"]["code"] == "port_taken"
