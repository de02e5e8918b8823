"""`hatchery doctor`: look at this machine and at the running stack."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import typer

from hatchery_cli.options import AsJson, Directory

app = typer.Typer(add_completion=False)
_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "error": "red"}


@app.command()
def doctor(directory: Directory = None, as_json: AsJson = False) -> None:
    """Check this machine and, when it runs, the stack: each finding has a code and a remedy. Exit code 1: an error."""
    found = collect(directory)
    if as_json:
        ok = all(one.level != "error" for one in found)
        typer.echo(json.dumps({"ok": ok, "findings": [dataclasses.asdict(one) for one in found]}, indent=2))
    else:
        _show(found)
    if any(one.level == "error" for one in found):
        raise typer.Exit(1)


def collect(directory: Any) -> list[Any]:
    """All findings."""
    from hatchery_cli.doctor.findings import error
    from hatchery_cli.doctor.machine import check_machine
    from hatchery_cli.embedded.layout import Layout, default_directory
    from hatchery_cli.embedded.leftovers import ABANDONED, is_abandoned, parts
    from hatchery_cli.embedded.stack import is_owned
    from hatchery_cli.embedded.state import read_state

    layout = Layout(directory.absolute() if directory else default_directory())
    state = read_state(layout)
    running = is_owned(layout)
    abandoned = is_abandoned(state, owned=running)
    left = parts(layout) if abandoned else []
    found = [error(ABANDONED["code"], ABANDONED["message"], ABANDONED["hint"])] if abandoned else []
    found += check_machine(layout, running=running, left=left)
    if not (running or left) or any(one.code == "python_broken" for one in found):
        return found
    from hatchery_common.run import installed_services

    from hatchery_cli.doctor.stack import check_stack
    from hatchery_cli.target import find_target

    watched = (state or {}).get("parts", {}) if running else {}  # what a dead `up` saw of its parts says nothing of now
    services = list(installed_services().values())
    return found + asyncio.run(check_stack(find_target(layout.root), services, watched))


def _show(found: list[Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        console.print(f"{one.level:8}", style=_STYLES[one.level], end="")
        console.print(f"{one.code}: {one.text}", markup=False)
        if one.remedy and one.level != "ok":
            console.print(f"        → {one.remedy}", markup=False)
    bad = sum(one.level == "error" for one in found)
    console.print(f"{len(found)} findings, {bad} errors", style="red" if bad else "green")
