"""`hatchery secrets`: one file per service with just its keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hatchery_cli.options import Directory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="One file per service with just its keys.")


@app.callback()
def group() -> None:
    """One file per service with just its keys."""


@app.command()
def render(
    directory: Directory = None,
    out: Annotated[Path | None, typer.Option(help="Where to write.", show_default="the stack's own directory")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="HATCHERY_ADMIN_DATABASE_URL", help="The database whose host and name the files shall hold."
        ),
    ] = None,
) -> None:
    """Write <service>.env (mode 0600) for each service, derived from the root key; no file holds another's keys.

    Secrets that are set here under a name which a service reads (NEXTAUTH_SECRET, INTERNAL_API_SECRET, OPENAI_API_KEY, …) go
    into its file. Each run writes the files anew: set the same variables every time.
    """
    from hatchery_common.errors import InvalidInput
    from hatchery_common.run import installed_services

    from hatchery_cli.rendering import write_secrets
    from hatchery_cli.target import find_target

    target = find_target(directory, database=database_url)
    place = out.absolute() if out else (target.layout.secrets if target.layout else None)
    if place is None:
        raise InvalidInput("no directory to write to", hint="name one with --out")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    services = list(installed_services().values())
    for path in write_secrets(place, target.root_key, services, target.database_url, dict(os.environ)):
        typer.echo(str(path))


@app.command("new-root")
def new_root() -> None:
    """Print a fresh root key, to be kept as HATCHERY_ROOT_KEY where no data directory holds one."""
    import secrets

    typer.echo(secrets.token_hex(32))
