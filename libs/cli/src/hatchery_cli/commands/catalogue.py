"""`hatchery catalogue`: every message, who sends it and who reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hatchery_cli.options import AsJson

if TYPE_CHECKING:
    from hatchery_cli.catalogue.registry import Catalogue

app = typer.Typer(add_completion=False)


@app.command()
def catalogue(
    only: Annotated[
        str | None, typer.Argument(help="Show only what contains this text (a type, class or service).")
    ] = None,
    as_json: AsJson = False,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print an AsyncAPI 3 document.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 if a rule is broken, a page is stale, or a released shape changed.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Bring pages, golden samples and fingerprints of this checkout up to date.")
    ] = False,
    root: Annotated[Path | None, typer.Option(help="The checkout, if not the one around here.")] = None,
) -> None:
    """Show every command, event and rpc with its senders and readers, from the services' own declarations."""
    from hatchery_common.run import installed_services

    from hatchery_cli.catalogue.checkout import find_root
    from hatchery_cli.catalogue.registry import build

    found = build(installed_services())
    if write:
        _write(find_root(root), found)
    if check:
        _check(find_root(root), found, as_json=as_json)
    if not write and not check:
        _print(found, only, as_json=as_json, asyncapi=asyncapi)


def _write(root: Path, found: Catalogue) -> None:
    from hatchery_cli.catalogue.checkout import write

    changed = write(root, found)
    for path in changed:
        typer.echo(f"wrote {path.relative_to(root)}", err=True)
    if not changed:
        typer.echo("everything is up to date", err=True)


def _check(root: Path, found: Catalogue, *, as_json: bool) -> None:
    from hatchery_cli.catalogue.checkout import check

    problems = check(root, found)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "problems": problems}, indent=2))
    else:
        for problem in problems:
            typer.secho(f"✗ {problem}", fg="red", err=True)
        if not problems:
            typer.echo(f"✓ {len(found.messages)} messages and {len(found.rpcs)} rpcs are in order")
    if problems:
        raise typer.Exit(1)


def _print(found: Catalogue, only: str | None, *, as_json: bool, asyncapi: bool) -> None:
    from importlib.metadata import version

    from hatchery_cli.catalogue.asyncapi import as_asyncapi
    from hatchery_cli.catalogue.rendering import as_json as plain

    if asyncapi:
        typer.echo(json.dumps(as_asyncapi(found, version("hatchery-common")), indent=2))
    elif as_json:
        typer.echo(json.dumps(plain(found), indent=2))
    else:
        _tables(found, only)


def _tables(found: Catalogue, only: str | None) -> None:
    from rich.table import Table

    from hatchery_cli.terminal import console

    screen = console()
    rows = [
        (e.message.message_type(), e.place, ", ".join(e.producers), ", ".join(e.consumers), e.kind)
        for e in found.messages
    ]
    for kind, title in (("command", "commands (wishes)"), ("event", "events (facts)")):
        table = Table("type", "class", "from", "→ to", title=title, title_justify="left", box=None)
        for *row, its_kind in rows:
            if its_kind == kind and _matches(row, only):
                table.add_row(row[0], row[1], row[2] or "[red]nobody[/]", row[3] or "[dim]–[/]")
        if table.row_count:
            screen.print(table, "")
    table = Table("subject", "asked by", "→ answered by", title="rpc (questions)", title_justify="left", box=None)
    for entry in found.rpcs:
        row = (entry.rpc.subject, ", ".join(entry.callers), ", ".join(entry.servers))
        if _matches(row, only):
            table.add_row(row[0], row[1] or "[dim]–[/]", row[2] or "[red]nobody[/]")
    if table.row_count:
        screen.print(table, "")
    for problem in found.problems():
        screen.print(f"✗ {problem}", style="red", markup=False)


def _matches(row: list[str] | tuple[str, ...], only: str | None) -> bool:
    return only is None or any(only.lower() in cell.lower() for cell in row)
