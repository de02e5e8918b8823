"""Migrations: one Alembic history per service, run under one advisory lock, in the service's schema and role.

A service's `migrations/env.py` is one call of `run_migrations(metadata)`; its first version calls `create_common_tables()`.
Files are named `<version>_<what>.py`, so that a service which only asks whether its schema is current need not import Alembic:
that is a quarter of what its start costs.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hatchery_common.database import Database, common_tables, translated
from hatchery_common.errors import SetupError

if TYPE_CHECKING:
    from alembic.config import Config

_VERSION_FILE = re.compile(r"(\d{4})_\w+\.py")
_LOCK = 0x6861746368  # "hatch": one migration at a time for the whole cluster


@dataclass(frozen=True)
class SchemaVersion:
    """What a schema is at and what this code wants."""

    schema: str
    current: str | None
    wanted: str | None

    @property
    def is_current(self) -> bool:
        """Whether the code may run on it: a newer schema still fits the code of one release before (expand, then contract)."""
        if self.current is None or self.wanted is None:
            return self.current == self.wanted
        return self.current >= self.wanted  # four digits each


def create_common_tables() -> None:
    """Create outbox, inbox and owner, and the trigger that wakes the relay; called by each service's first migration."""
    from alembic import op

    _create("outbox", "inbox", "owner")
    op.execute(
        "CREATE FUNCTION notify_outbox() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('outbox_' || TG_TABLE_SCHEMA, ''); RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER outbox_notify AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox()"
    )


def create_suspects_and_streams() -> None:
    """Create the common tables `quarantine` and `known_streams`; called by each service's migration of that name."""
    _create("quarantine", "known_streams")


def drop_suspects_and_streams() -> None:
    """Undo create_suspects_and_streams."""
    from alembic import op

    op.drop_table("known_streams")
    op.drop_table("quarantine")


def _create(*names: str) -> None:
    from alembic import op

    metadata = sa.MetaData()
    common_tables(metadata)
    metadata.create_all(op.get_bind(), tables=[metadata.tables[name] for name in names], checkfirst=False)


def run_migrations(metadata: sa.MetaData) -> None:
    """What every `migrations/env.py` calls: run within the connection that `upgrade` or `compare` handed over."""
    from alembic import context

    connection: Connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


def _config(migrations: str, connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(importlib.resources.files(migrations)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def wanted_version(migrations: str) -> str | None:
    """The newest version in the code."""
    files = (entry.name for entry in (importlib.resources.files(migrations) / "versions").iterdir())
    return max((found[1] for name in files if (found := _VERSION_FILE.fullmatch(name))), default=None)


async def upgrade(database: Database, migrations: str) -> SchemaVersion:
    """Bring one schema to the code's version; safe to repeat and to run from several processes at once."""
    found = await version(database, migrations)
    if found.is_current:
        return found
    from alembic import command

    def work(connection: Connection) -> None:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(_config(migrations, connection), "head")

    with translated("migrating"):
        async with database.engine.begin() as connection:
            await connection.run_sync(work)
    return await version(database, migrations)


async def version(database: Database, migrations: str) -> SchemaVersion:
    """What the schema is at; `current` is None when it was never migrated."""
    async with database.connect() as connection:
        known = await connection.scalar(sa.text("SELECT to_regclass('alembic_version') IS NOT NULL"))
        found = await connection.scalar(sa.text("SELECT version_num FROM alembic_version")) if known else None
    return SchemaVersion(database.schema, found, wanted_version(migrations))


async def ensure_roles(admin_url: str, passwords: dict[str, str]) -> None:
    """Create for each schema a role `hatchery_<schema>` and the schema it alone owns; repeats set the password again.

    `admin_url` needs CREATEROLE and CREATE on the database. Raises SetupError when the rights are missing.
    """
    with translated("creating roles"):
        connection = await asyncpg.connect(admin_url, timeout=10, command_timeout=10)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            for schema, password in passwords.items():
                await _ensure_role(connection, schema, password)
    except asyncpg.InsufficientPrivilegeError as error:
        raise SetupError(f"the database user may not create roles: {error}", hint="give it CREATEROLE") from error
    finally:
        await connection.close(timeout=5)


async def _ensure_role(connection: asyncpg.Connection, schema: str, password: str) -> None:
    role = f"hatchery_{schema}"
    if not (role.replace("_", "").isalnum() and password.isalnum()):
        raise SetupError(f"role {role} or its password has characters outside [A-Za-z0-9_]")
    exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
    verb = "ALTER" if exists else "CREATE"  # a new role has no other rights; only a superuser may take away some
    await connection.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{password}'")
    await connection.execute(f"GRANT {role} TO CURRENT_USER")
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {role}")
    await connection.execute(f"ALTER ROLE {role} SET search_path = {schema}")


def upgrade_sync(database: Database, migrations: str) -> SchemaVersion:
    """`upgrade` for callers without a loop."""
    return asyncio.run(upgrade(database, migrations))
