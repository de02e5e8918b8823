"""The state file of a stack: what `up` knows, for `status`, `down` and `up --detach` to read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from dataclasses import asdict
from typing import Any

from hatchery_cli.embedded.layout import Choices, Layout, read_json, write_private
from hatchery_cli.embedded.supervisor import Condition

_EVENTS = 50
LIVING = ("starting", "ready", "stopping")  # phases that last only as long as their `up`


class StateFile:
    """Written by `up` whenever something changes.

    Its writer never fails: `up` must watch and stop its parts on a full disk, too. What could not be written is kept.
    """

    def __init__(self, layout: Layout, choices: Choices) -> None:
        self._path = layout.state_file
        self._body: dict[str, Any] = {
            "phase": "starting",
            "pid": os.getpid(),
            "port": choices.port,
            "directory": str(layout.root),
            "started_at": time.time(),
            "error": None,
            "parts": {},
            "notes": [],
            "isolation": None,
        }
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._is_written = True

    def phase(self, phase: str, error: dict[str, Any] | None = None) -> None:
        """Move to a phase: starting, ready, stopping, stopped, failed."""
        self._body |= {"phase": phase, "error": error}
        self._write()

    def note(self, text: str) -> None:
        """Keep a warning that `status` shows."""
        self._body["notes"].append(text)
        self._write()

    def isolation(self, missing: str | None) -> None:
        """Keep what isolation the gateways do without, for `status` and `doctor`."""
        self._body["isolation"] = missing
        self._write()

    def part(self, name: str, condition: Condition) -> None:
        """Keep what is known of a part."""
        self._body["parts"][name] = asdict(condition)
        self._events.append({"at": time.time(), "part": name, "state": condition.state, "reason": condition.reason})
        self._write()

    def retry(self) -> None:
        """Write what could not be written before, if there is any."""
        if not self._is_written:
            self._write()

    def _write(self) -> None:
        try:
            write_private(self._path, json.dumps(self._body | {"events": list(self._events)}) + "\n")
        except OSError:
            self._is_written = False
        else:
            self._is_written = True


def read_state(layout: Layout) -> dict[str, Any] | None:
    """The last state that an `up` wrote here; None when none ever did."""
    return read_json(layout.state_file)


def write_stopped(layout: Layout) -> None:
    """Say that everything was stopped, in the place of an `up` that could not say so itself."""
    state = read_state(layout)
    if state is None or state["phase"] not in LIVING:
        return
    for part in state["parts"].values():
        part |= {"state": "stopped", "pid": None, "since": time.time()}
    with contextlib.suppress(OSError):  # everything is stopped all the same
        write_private(layout.state_file, json.dumps(state | {"phase": "stopped", "error": None}) + "\n")
