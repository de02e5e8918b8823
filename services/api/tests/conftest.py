"""Makes the stage of this directory importable by its test modules, and its fixtures known to them."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from hatchery_api.routes import build_app
from hatchery_api.settings import ApiSettings

sys.path.insert(0, str(Path(__file__).parent))

from api_events import provisioned
from api_fakes import FakeCalls, FakeLogs
from api_stage import World, build_door, opened, settings, token
from api_store import MemoryStore

__all__ = ["provisioned"]


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """The api over fakes, open to everyone with a token."""
    async with opened() as made:
        yield made


@pytest.fixture
def open_world() -> Callable[..., Any]:
    """Opens an api with other settings, or on another store."""
    return opened


@pytest.fixture
def make_token() -> Callable[..., str]:
    """Signs website tokens, right or wrong ones."""
    return token


@pytest.fixture
def make_settings() -> Callable[..., ApiSettings]:
    """Settings with every required value."""
    return settings


@pytest.fixture
def app() -> Any:
    """The application over fakes, for tests without a loop."""
    logs = FakeLogs()
    return build_app(build_door(settings(), MemoryStore(), logs, FakeCalls(logs)))
