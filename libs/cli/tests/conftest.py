"""Fixtures of the command line's tests."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hatchery_cli.embedded.layout import Layout
from hatchery_common.testing.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

from operators_stage import bus_url, hatchery

__all__ = ["bus_url", "hatchery"]


@pytest.fixture
def place() -> Generator[Path]:
    """A directory that other user ids may pass through (pytest's own is closed when run as root)."""
    path = Path(tempfile.mkdtemp(prefix="hatchery-cli-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def layout(place: Path) -> Layout:
    """A fresh data directory."""
    made = Layout(place / "data")
    made.create()
    return made


@pytest.fixture
def port() -> int:
    """A TCP port of this process."""
    return free_port()


@pytest.fixture(scope="session", autouse=True)
def cache() -> Generator[Path]:
    """A cache of our own, unless one was named, so that tests write nothing into the machine's."""
    patch = pytest.MonkeyPatch()
    path = Path(tempfile.mkdtemp(prefix="hatchery-cache-"))
    path.chmod(0o755)
    patch.setenv("HATCHERY_CACHE", str(path))
    yield path
    patch.undo()
    shutil.rmtree(path)
