"""`hatchery status`: what runs, where to click, what crashed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import typer

from hatchery_cli.options import AsJson, Directory

app = typer.Typer(add_completion=False)


@app.command()
def status(directory: Directory = None, as_json: AsJson = False) -> None:
    """Show the parts of the stack in a data directory. Exit code 0: all ready, 3: not running, 1: something is wrong."""
    from hatchery_cli.embedded.layout import Layout, default_directory

    layout = Layout(directory.absolute() if directory else default_directory())
    body = collect(layout)
    if as_json:
        typer.echo(json.dumps(body, indent=2))
    else:
        _show(body)
    raise typer.Exit({"ready": 0, "stopped": 3}.get(body["phase"], 1))


def collect(layout: Any) -> dict[str, Any]:
    """Everything about this stack that can be seen from outside."""
    from hatchery_cli.embedded.layout import Ports
    from hatchery_cli.embedded.leftovers import ABANDONED, is_abandoned
    from hatchery_cli.embedded.machines import controllers
    from hatchery_cli.embedded.probe import readiness
    from hatchery_cli.embedded.stack import is_owned
    from hatchery_cli.embedded.state import read_state

    state = read_state(layout) or {"phase": "stopped", "parts": {}, "events": [], "notes": [], "error": None}
    alive = is_owned(layout)
    if is_abandoned(state, owned=alive):
        state |= {"phase": "abandoned", "error": ABANDONED}
    port = layout.choices().port
    services = asyncio.run(readiness(Ports(port))) if alive else {}
    parts_ready = all(part["state"] == "ready" for part in state["parts"].values())
    if state["phase"] == "ready" and not (parts_ready and all(answer.get("ok") for answer in services.values())):
        state["phase"] = "degraded"
    found = controllers(layout.machines)
    return {
        "phase": state["phase"], "directory": str(layout.root), "port": port, "url": f"http://127.0.0.1:{port}",
        "pid": state.get("pid") if alive else None, "error": state.get("error"), "notes": state.get("notes", []),
        "isolation": state.get("isolation"),
        "parts": state["parts"], "services": services, "machines": {"running": len(found), "pids": found},
        "events": state["events"][-20:],
    }  # fmt: skip


def _show(body: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{body['phase']}[/] in {body['directory']}, {body['url']}")
    if body["error"]:
        console.print(f"error[{body['error']['code']}]: {body['error']['message']}", markup=False)
        if body["error"]["hint"]:
            console.print(f"  → {body['error']['hint']}", markup=False)
    for note in [*body["notes"], *([body["isolation"]] if body["isolation"] else [])]:
        console.print(f"note: {note}", markup=False)
    if body["phase"] == "stopped":
        return
    table = Table("part", "state", "for", "pid", "restarts", "last crash", box=None)
    for name, part in body["parts"].items():
        age = f"{time.time() - part['since']:.0f} s"
        why = part.get("waiting") or part["reason"] or ""
        table.add_row(name, part["state"], age, str(part["pid"] or ""), str(part["restarts"]), why)
    for name, answer in body["services"].items():
        state = "ready" if answer.get("ok") else str(answer.get("phase", "silent"))
        problems = "; ".join(answer.get("problems", []))
        table.add_row(f"  {name}", state, f"{answer.get('for_s', '')} s", "", str(answer.get("restarts", "")), problems)
    console.print(table)
    console.print(f"machines running: {body['machines']['running']}")
