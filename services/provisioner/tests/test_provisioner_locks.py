"""Removing an instance's directory removes the lock files that OpenClaw keeps elsewhere, and no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hatchery_provisioner.adapters.process.directory import InstanceDirectory


@pytest.fixture
def locks() -> Generator[Path]:
    directory = Path("/tmp") / f"openclaw-state-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    foreign = directory / "state-handles.00c0ffee.lock.sqlite"
    foreign.touch()
    yield directory
    foreign.unlink(missing_ok=True)


def test_the_locks_of_every_database_go_and_those_of_others_stay(locks: Path, tmp_path: Path) -> None:
    root = tmp_path / "machines" / "ins_1"
    databases = [root / "state" / "state" / "openclaw.sqlite", root / "state/agents/main/agent/openclaw-agent.sqlite"]
    held: list[Path] = []
    for database in databases:
        database.parent.mkdir(parents=True)
        database.touch()
        name = hashlib.sha256(str(database.resolve()).encode()).hexdigest()[:8]
        held.append(locks / f"state-handles.{name}.lock.sqlite")
        held[-1].touch()

    InstanceDirectory(root).remove(uid=None)

    assert [path for path in held if path.exists()] == []
    assert (locks / "state-handles.00c0ffee.lock.sqlite").exists()
    assert not root.exists()
