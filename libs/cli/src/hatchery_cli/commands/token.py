"""`hatchery token`: website tokens for trying things out."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from hatchery_cli.options import Directory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Website tokens for trying things out.")


@app.callback()
def group() -> None:
    """Website tokens for trying things out."""


@app.command()
def create(
    user: Annotated[str, typer.Option("--user", "-u", help="The user id (`sub`).")],
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long it is valid.")] = 24,
    directory: Directory = None,
) -> None:
    """Print a token as the website would make it; only where the api listens on loopback."""
    from hatchery_api.settings import ApiSettings, is_loopback
    from hatchery_common.errors import Refused
    from hatchery_common.settings import load, service_environment

    from hatchery_cli.embedded.layout import Layout, default_directory
    from hatchery_cli.embedded.stack import environment
    from hatchery_cli.errors import NotRunning

    layout = Layout(directory.absolute() if directory else default_directory())
    if not (layout.secrets / "api.env").exists():
        raise NotRunning(f"no stack was ever started in {layout.root}", hint="start one with `hatchery up`")
    given = environment(layout, layout.choices(), dict(os.environ))
    settings = load(ApiSettings, service_environment("api", given))
    if not is_loopback(settings.host):
        raise Refused(f"the api listens on {settings.host}: only the website makes tokens there")
    import jwt

    now = int(time.time())
    claims = {
        "sub": user,
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "iat": now,
        "exp": now + int(hours * 3600),
    }
    if settings.jwt_environment:
        claims["env"] = settings.jwt_environment
    typer.echo(jwt.encode(claims, settings.website_jwt_secret, algorithm="HS256"))
