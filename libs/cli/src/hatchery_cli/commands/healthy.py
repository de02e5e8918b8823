"""`hatchery healthy`: exit 0 when a service on this machine is ready; the health check of a container."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

_BASE_PORT = 8810
_ORDER = ("api", "provisioner", "billing", "agent", "runtime-proxy")


@app.command()
def healthy(name: Annotated[str, typer.Argument(help="The service.")]) -> None:
    """Ask the service's /readyz on loopback; prints what it says, exits 1 when it is not ready."""
    if name not in _ORDER:
        raise typer.BadParameter(f"no service is called {name}; there are {', '.join(_ORDER)}")
    port = int(os.environ.get("HATCHERY_HEALTH_BASE_PORT", _BASE_PORT)) + _ORDER.index(name)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
            typer.echo(answer.read().decode())
    except urllib.error.HTTPError as error:
        typer.echo(error.read().decode(), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{name} does not answer on 127.0.0.1:{port}: {error}", err=True)
        raise typer.Exit(1) from None
