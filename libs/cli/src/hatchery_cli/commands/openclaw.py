"""`hatchery openclaw`: the OpenClaw that machines run."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The OpenClaw that machines run.")


@app.callback()
def group() -> None:
    """The OpenClaw that machines run."""


@app.command()
def install() -> None:
    """Install the pinned version (and Node and Postgres) into the shared cache, if it is not there."""
    from hatchery_cli.embedded import openclaw, upping

    if upping.install() is not None:
        raise typer.Exit(1)
    typer.echo(str(openclaw.path()))
