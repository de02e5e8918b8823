"""One stack per topology for the whole run of this directory; its tests use users of their own."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from whole_stack import TOPOLOGIES, WholeStack, whole_stack


@pytest.fixture(scope="session", params=TOPOLOGIES)
def _stack_of_topology(request: pytest.FixtureRequest) -> Generator[WholeStack]:
    with whole_stack(request.param) as stack:
        stack.up()
        yield stack


@pytest.fixture
def stack(_stack_of_topology: WholeStack) -> WholeStack:
    """A running stack; brought up again when an earlier test left it down."""
    if not _stack_of_topology.is_up:
        _stack_of_topology("down")
        _stack_of_topology.up()
    return _stack_of_topology


@pytest.fixture
def user() -> Callable[[], str]:
    """Makes ids of users that nobody else uses."""
    return lambda: f"user-{uuid.uuid4().hex[:12]}@example.com"
