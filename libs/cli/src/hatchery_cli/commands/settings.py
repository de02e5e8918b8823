"""`hatchery settings`: every setting of every service, with its variable, default and meaning."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from hatchery_cli.options import AsJson

app = typer.Typer(add_completion=False)


@app.command()
def settings(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/reference/settings.md.")] = False,
) -> None:
    """List every setting: the variable that sets it, other names it is known by, its default, and what it is for."""
    from hatchery_cli.catalogue.settings import all_settings, as_markdown

    rows = all_settings()
    if markdown:
        typer.echo(as_markdown(rows), nl=False)
    elif as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        for row in rows:
            typer.echo(f"{row.variable} = {row.default}\n    {row.description}")
