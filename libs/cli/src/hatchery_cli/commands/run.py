"""`hatchery run`: services in one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Services to run.", show_default="all")] = None,
    stack: Annotated[Path | None, typer.Option(help="Take settings and secrets from this data directory.")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Migrate database and bus first (needs --stack).")] = False,
) -> None:
    """Run the named services in one event loop, each under its own supervisor, until SIGTERM or Ctrl-C.

    Settings come from the environment; with --stack those of a stack started by `up` are the defaults, and its
    NATS server is used whatever is set. Exit code 78: a setting is missing or wrong; each is
    named, and starting again is of no use before it is set.
    """
    from hatchery_cli.running import run_named

    run_named(names or [], stack.absolute() if stack else None, prepare=prepare, given=dict(os.environ))
