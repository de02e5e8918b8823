"""`hatchery healthy`: exit 0 when a service on this machine is ready; the health check of a container."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from hatchery_cli.options import Directory

app = typer.Typer(add_completion=False)

_ORDER = ("api", "provisioner", "billing", "agent", "runtime-proxy")


@app.command()
def healthy(name: Annotated[str, typer.Argument(help="The service.")], directory: Directory = None) -> None:
    """Ask the service's /readyz on loopback; prints what it says, exits 1 when it is not ready.

    The port is that of the stack in the directory; unless --dir names one, HATCHERY_HEALTH_BASE_PORT comes first.
    """
    if name not in _ORDER:
        raise typer.BadParameter(f"no service is called {name}; there are {', '.join(_ORDER)}")
    port = _base_port(directory) + _ORDER.index(name)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
            typer.echo(answer.read().decode())
    except urllib.error.HTTPError as error:
        typer.echo(error.read().decode(), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{name} does not answer on 127.0.0.1:{port}: {error}", err=True)
        raise typer.Exit(1) from None


def _base_port(directory: Path | None) -> int:
    from hatchery_cli.embedded.layout import Layout, Ports, default_directory
    from hatchery_cli.errors import NotRunning

    given = os.environ.get("HATCHERY_HEALTH_BASE_PORT")
    if given and directory is None:
        return int(given)
    layout = Layout(directory.absolute() if directory else default_directory())
    if not layout.exists and (directory or "HATCHERY_DIR" in os.environ):
        raise NotRunning(f"no stack was ever started in {layout.root}", hint="check --dir or HATCHERY_DIR")
    return Ports(layout.choices().port).health(_ORDER[0])
