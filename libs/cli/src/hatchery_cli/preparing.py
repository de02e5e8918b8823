"""What must be there before services can work: roles and schemas, streams and durables, the server's users, secrets files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from hatchery_common.bus.authorization import ADMIN
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import Report
from hatchery_common.bus.topology import migrate as migrate_topology
from hatchery_common.database import Database, translated
from hatchery_common.errors import DependencyUnavailable, Refused
from hatchery_common.migrate import SchemaVersion, ensure_roles, upgrade, version
from hatchery_common.service import Service

from hatchery_cli.embedded import nats
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.embedded.stack import database_url, nats_url
from hatchery_cli.errors import DatabaseRefused
from hatchery_cli.rendering import authorization, nkey_seed, role_password, role_url, write_secrets
from hatchery_cli.urls import CHECK_DATABASE_URL, not_a_database_url, require_database_url

_RELOAD_S = 10.0


async def prepare(layout: Layout, choices: Choices, services: Sequence[Service], given: Mapping[str, str]) -> None:
    """Everything for a stack of this directory; repeats change nothing."""
    root = layout.root_key()
    admin_url = database_url(layout, choices)
    write_secrets(layout.secrets, root, services, admin_url, given)
    if choices.nats_url is None:
        nats.write_authorization(layout.nats, authorization(root, services))
        nats.reload(layout.nats)
    if choices.database_url is None:
        await create_database(admin_url)
    async with asyncio.TaskGroup() as group:
        group.create_task(migrate_databases(root, services, admin_url))
        group.create_task(migrate_bus(nats_url(choices), services, nkey_seed(root, ADMIN)))


async def create_database(admin_url: str) -> None:
    """Create the database that the URL names, if it is not there."""
    parts = urlsplit(admin_url)
    name = parts.path.lstrip("/")
    with translated("creating the database"), refused_login(admin_url):
        connection = await asyncpg.connect(urlunsplit(parts._replace(path="/postgres")), timeout=10)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close(timeout=5)


@contextmanager
def refused_login(url: str) -> Generator[None]:
    """Turn Postgres' answers to a wrong login and to a missing database, and a wrong URL, into DatabaseRefused.

    Other errors pass.
    """
    require_database_url(url)
    parts = urlsplit(url)
    place = f"{parts.hostname}:{parts.port or 5432}"
    try:
        yield
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise DatabaseRefused(
            f"Postgres at {place} refuses the login: {error}", hint=f"{CHECK_DATABASE_URL}: user and password"
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise DatabaseRefused(
            f"Postgres at {place}: {error}", hint=f"create the database first, or {CHECK_DATABASE_URL}"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise not_a_database_url(str(error)) from error
    except DependencyUnavailable as error:  # what the driver cannot read is no outage, however often it is tried
        if isinstance(error.__cause__, asyncpg.ClientConfigurationError):
            raise not_a_database_url(str(error.__cause__)) from error
        raise


async def migrate_databases(root: bytes, services: Sequence[Service], admin_url: str) -> list[SchemaVersion]:
    """Roles and schemas, then each service's migrations; returns what each schema is at."""
    with refused_login(admin_url):
        await ensure_roles(admin_url, {one.schema: role_password(root, one.schema) for one in services if one.schema})
    done: list[SchemaVersion] = []
    for service in services:
        if service.schema is not None and service.migrations is not None:
            async with _own(root, service.schema, admin_url) as database:
                done.append(await upgrade(database, service.migrations))
    return done


async def schema_versions(root: bytes, services: Sequence[Service], admin_url: str) -> list[SchemaVersion]:
    """What each schema is at and what this code wants."""
    found: list[SchemaVersion] = []
    for service in services:
        if service.schema is not None and service.migrations is not None:
            async with _own(root, service.schema, admin_url) as database:
                found.append(await version(database, service.migrations))
    return found


@asynccontextmanager
async def _own(root: bytes, schema: str, admin_url: str) -> AsyncGenerator[Database]:
    database = Database(role_url(root, schema, admin_url), schema, pool_size=1)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def administrator(url: str, seed: str | None) -> AsyncGenerator[JetStream]:
    """The bus as its administrator; waits while a reload of the server's users is on its way."""
    end = asyncio.get_running_loop().time() + _RELOAD_S
    while True:
        connection = Connection(url, ADMIN, seed)
        try:
            await connection.open(5)
            break
        except Refused:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.05)
    try:
        yield JetStream(connection)
    finally:
        await connection.close()


async def migrate_bus(url: str, services: Sequence[Service], seed: str | None, *, replicas: int = 1) -> Report:
    """Streams, buckets and durables of these services."""
    async with administrator(url, seed) as jetstream:
        return await migrate_topology(jetstream, services, replicas=replicas)
