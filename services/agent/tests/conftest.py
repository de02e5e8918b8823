"""Makes the fakes of this directory importable by its test modules, and worlds known to them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_stack import stack, start_deadline_s
from agent_world import World

__all__ = ["make_world", "stack", "start_deadline_s", "world"]


@pytest.fixture
def world() -> World:
    """A thread with one submitted message."""
    made = World()
    made.rows.submit("run_1", "Hi")
    return made


@pytest.fixture
def make_world() -> type[World]:
    """For tests that need many worlds."""
    return World
