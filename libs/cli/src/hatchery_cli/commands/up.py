"""`hatchery up`: start the whole stack on this machine and watch over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hatchery_cli.embedded.port_range import LAST_PORT
from hatchery_cli.options import Directory

app = typer.Typer(add_completion=False)
Port = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=LAST_PORT,
        help="First port; the stack uses PORT to PORT+299.",
        show_default="the last one, at first 8800",
    ),
]
Processes = Annotated[
    bool | None,
    typer.Option(
        "--processes/--one-process",
        help="Each service in a process of its own.",
        show_default="as last time, at first one process",
    ),
]

TrustAllUsers = Annotated[
    bool | None,
    typer.Option(
        "--trust-all-users/--no-trust-all-users",
        help="Where all gateways share one user of this machine (not root), serve more than one user of yours: each "
        "then reaches the others' data.",
        show_default="as last time, at first no",
    ),
]


@app.command()
def up(
    directory: Directory = None,
    port: Port = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready; it goes on running.")
    ] = False,
    nats_url: Annotated[
        str | None, typer.Option(envvar="HATCHERY_NATS_URL", help="Use this NATS server instead of an embedded one.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="HATCHERY_ADMIN_DATABASE_URL",
            help="Use this Postgres (as a user who may create roles) instead of an embedded one.",
        ),
    ] = None,
    processes: Processes = None,
    trust_all_users: TrustAllUsers = None,
) -> None:
    """Start NATS, Postgres, OpenClaw and the five services on this machine.

    Everything listens on loopback only. Ctrl-C stops everything in order; nothing that should run is forgotten: the next
    `up` on the same directory starts it again.
    """
    from hatchery_cli.embedded.upping import run_up

    run_up(
        Path(directory).absolute() if directory else None,
        port=port,
        detach=detach,
        nats_url=nats_url,
        database_url=database_url,
        processes=processes,
        trust_all_users=trust_all_users,
    )
