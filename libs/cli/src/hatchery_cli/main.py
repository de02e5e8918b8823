"""The `hatchery` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

if TYPE_CHECKING:
    from hatchery_common.errors import HatcheryError

# name -> one line of help; the code of `x-y` is hatchery_cli.commands.x_y with a Typer called `app`.
COMMANDS: dict[str, str] = {
    "up": "Start everything on this machine: NATS, Postgres, OpenClaw and the five services.",
    "down": "Stop everything in order; what should run starts again with the next up.",
    "status": "Show what runs, where to click and what crashed.",
    "doctor": "Check this machine and the running stack; every finding comes with its remedy.",
    "openclaw": "Install the pinned OpenClaw into the shared cache.",
    "demo": "Act as a website against a fresh stack and print the timeline.",
    "token": "Make a website token for trying things out.",
    "run": "Run the named services (default: all) in one process.",
    "healthy": "Exit 0 when a service on this machine is ready (for health checks).",
    "db": "Database: create roles and schemas, migrate.",
    "bus": "Bus: migrate streams and durables, render the server's authorization.",
    "secrets": "Secrets: render one file per service from the root key.",
    "catalogue": "Show every message: who sends it and who reads it.",
    "settings": "Every setting of every service: variable, default, meaning.",
    "events": "Tell the story of one instance, with causes.",
    "stream": "Streams: list, tail, show, replay; dead letters.",
    "billing": "The ledger: verify it, rebuild it from the event log.",
    "test": "Run the checks and tests of this checkout.",
}


class LazyGroup(TyperGroup):
    """A command group that knows names and help by the table and imports a command when it is resolved."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in COMMANDS:
            command = load(name)
        return name, command, rest


def load(name: str) -> Any:
    """The real command called `name`."""
    module = importlib.import_module(f"hatchery_cli.commands.{name.replace('-', '_')}")
    command = get_command(module.app)
    command.name = name
    return command


def exists(name: str) -> bool:
    """Whether this installation has the command."""
    return importlib.util.find_spec(f"hatchery_cli.commands.{name.replace('-', '_')}") is not None


def build() -> LazyGroup:
    """The whole command line, its subcommands still unimported."""
    stubs = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items() if exists(name)}
    return LazyGroup(
        name="hatchery",
        help="A self-hosted cloud for OpenClaw: every user gets a gateway of their own.",
        commands=dict(stubs),
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def report(error: Any, *, as_json: bool) -> None:
    """Print a typed error: its code, its sentence and the remedy."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        typer.echo(json.dumps({"ok": False, "error": body}))
        return
    typer.secho(f"error[{error.code}]: {error.message}", fg="red", err=True)
    if error.hint:
        typer.echo(f"  → {error.hint}", err=True)


def is_it_running(error: BaseException) -> str:
    """What to do when a server does not answer, with what the system said of it: that names the address."""
    said = f" ({error.__cause__})" if isinstance(error.__cause__, OSError) and str(error.__cause__) else ""
    return f"is it running? see `hatchery status`{said}"


def failed(error: HatcheryError, *, as_json: bool) -> int:
    """Print a typed error; returns the exit code that belongs to it."""
    from hatchery_common.errors import SettingsWrong

    report(error, as_json=as_json)
    return os.EX_CONFIG if isinstance(error, SettingsWrong) else 1


def run() -> None:
    """Entry point of the console script."""
    from hatchery_common.errors import DependencyUnavailable, HatcheryError

    try:
        build()(prog_name=os.environ.get("HATCHERY_PROG", "hatchery"))
    except HatcheryError as error:
        if isinstance(error, DependencyUnavailable):
            error.hint = error.hint or is_it_running(error)
        sys.exit(failed(error, as_json="--json" in sys.argv))
