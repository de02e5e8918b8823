"""`hatchery bus`: streams, durables, and the server's users."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from hatchery_cli.options import AsJson, Directory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Streams, durables, and the server's users.")
Url = Annotated[str | None, typer.Option("--nats-url", envvar="HATCHERY_NATS_URL", help="The NATS server.")]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed", envvar="HATCHERY_NATS_ADMIN_SEED", help="nkey seed of bus-admin.", show_default="from the root key"
    ),
]


@app.callback()
def group() -> None:
    """Streams, durables, and the server's users."""


@app.command()
def migrate(
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    replicas: Annotated[int, typer.Option(min=1, max=5, help="Copies of each stream (3 on a cluster).")] = 1,
    as_json: AsJson = False,
) -> None:
    """Create or update streams, buckets and durables from the services' declarations; safe to repeat."""
    from hatchery_common.bus.authorization import ADMIN
    from hatchery_common.run import installed_services

    from hatchery_cli.preparing import migrate_bus
    from hatchery_cli.rendering import nkey_seed
    from hatchery_cli.target import find_target

    target = find_target(directory, bus=nats_url, need_database=False)
    signing = seed or nkey_seed(target.root_key, ADMIN)
    report = asyncio.run(migrate_bus(target.nats_url, list(installed_services().values()), signing, replicas=replicas))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
        return
    for what, names in dataclasses.asdict(report).items():
        if names:
            typer.echo(f"{what}: {', '.join(names)}")


@app.command()
def config(
    directory: Directory = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file (mode 0600) instead of printing it.")] = None,
) -> None:
    """Render the NATS server's authorization block: one user per service with exactly the rights it declares."""
    from hatchery_common.run import installed_services

    from hatchery_cli.embedded.layout import write_private
    from hatchery_cli.rendering import authorization
    from hatchery_cli.target import find_target

    target = find_target(directory, need_database=False)
    text = authorization(target.root_key, installed_services().values())
    if out is None:
        typer.echo(text)
    else:
        write_private(out.absolute(), text)
