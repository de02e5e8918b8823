"""Makes the fakes of this directory importable by its test modules, and gives them a database."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "contracts"))

import pytest
from hatchery_common.database import Database
from hatchery_common.testing.postgres import PostgresServer, fresh_database
from hatchery_provisioner.main import service
from process_rig import ProcessRig


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncGenerator[Database]:
    async with fresh_database(postgres, service) as databases:
        yield databases["provisioner"]


@pytest.fixture
async def rig() -> AsyncGenerator[ProcessRig]:
    """A process driver with its machines; closed, with all that runs, at the end."""
    rig = ProcessRig()
    try:
        yield rig
    finally:
        await rig.close()
