"""The state file: what cannot be written now is written with the next change, and its writer never fails."""

from __future__ import annotations

import shutil

from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.embedded.state import StateFile, read_state
from hatchery_cli.embedded.supervisor import Condition


def test_a_change_that_cannot_be_written_comes_with_the_next(layout: Layout) -> None:
    state = StateFile(layout, Choices())
    state.phase("ready")
    shutil.rmtree(layout.run)
    state.part("nats", Condition("restarting", reason="was killed by SIGKILL"))
    state.note("something is missing")
    layout.run.mkdir()
    state.retry()
    written = read_state(layout)
    assert written is not None
    assert written["parts"]["nats"]["state"] == "restarting"
    assert written["notes"] == ["something is missing"]


def test_what_is_written_is_not_written_again(layout: Layout) -> None:
    state = StateFile(layout, Choices())
    state.phase("ready")
    before = layout.state_file.stat().st_mtime_ns
    state.retry()
    assert layout.state_file.stat().st_mtime_ns == before
