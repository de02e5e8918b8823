"""Fixtures of the tests of libs/common."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from hatchery_common.database import Database
from hatchery_common.testing.example import service
from hatchery_common.testing.postgres import PostgresServer, fresh_database


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncGenerator[Database]:
    """A database of the test's own, migrated for the example service."""
    async with fresh_database(postgres, service) as databases:
        yield databases["example"]
