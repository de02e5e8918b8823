"""`hatchery db`: roles, schemas and migrations."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from hatchery_cli.options import AsJson, Directory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Roles, schemas and migrations.")
Url = Annotated[
    str | None,
    typer.Option(
        "--database-url", envvar="HATCHERY_ADMIN_DATABASE_URL", help="Postgres as a user who may create roles."
    ),
]


@app.callback()
def group() -> None:
    """Roles, schemas and migrations."""


@app.command()
def migrate(directory: Directory = None, database_url: Url = None, as_json: AsJson = False) -> None:
    """Create each service's role and schema and bring it to this version; safe to repeat, old code keeps working."""
    from hatchery_common.migrate import SchemaVersion
    from hatchery_common.run import installed_services

    from hatchery_cli.preparing import create_database, migrate_databases
    from hatchery_cli.target import find_target

    target = find_target(directory, database=database_url)

    async def work() -> list[SchemaVersion]:
        if target.layout is not None and target.choices.database_url is None:
            await create_database(target.database_url)
        return await migrate_databases(target.root_key, list(installed_services().values()), target.database_url)

    done = asyncio.run(work())
    if as_json:
        typer.echo(json.dumps({one.schema: one.current for one in done}))
        return
    for one in done:
        typer.echo(f"{one.schema}: at {one.current}")
