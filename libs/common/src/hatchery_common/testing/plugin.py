"""The pytest plugin with the servers that tests need: `pytest_plugins = ["hatchery_common.testing.plugin"]`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.testing.nats import NatsServer, container_nats, containers_wanted
from hatchery_common.testing.postgres import LocalPostgres, PostgresServer, container_postgres, local_postgres


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresServer]:
    """One PostgreSQL 18 for the whole session; take a database of your own by `fresh_database`."""
    if containers_wanted():
        with container_postgres() as server:
            yield server
        return
    with local_postgres() as local:
        yield local.server


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[NatsServer]:
    """One nats-server for the whole session, without authorization; see `clean_nats` for an empty one."""
    if containers_wanted():
        with container_nats() as server:
            yield server
        return
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def clean_nats(nats_server: NatsServer) -> AsyncGenerator[NatsServer]:
    """The session's nats-server with all streams gone: migrate the topology that the test needs."""
    connection = Connection(nats_server.url, "test-cleaner")
    await connection.open()
    jetstream = JetStream(connection)
    for name in (await jetstream.call("STREAM.NAMES")).get("streams") or []:
        await jetstream.call(f"STREAM.DELETE.{name}")
    await connection.close()
    yield nats_server


@pytest.fixture
def own_nats(tmp_path: Path) -> Generator[NatsServer]:
    """A nats-server of the test's own, not started yet: to be killed, stopped or given an authorization block."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.stop()


@pytest.fixture
def own_postgres() -> Generator[LocalPostgres]:
    """A PostgreSQL of the test's own: to be stopped, killed and started again."""
    with local_postgres() as server:
        yield server
