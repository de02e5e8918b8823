"""`hatchery down`: stop everything in order."""

from __future__ import annotations

import typer

from hatchery_cli.options import Directory

app = typer.Typer(add_completion=False)


@app.command()
def down(directory: Directory = None) -> None:
    """Stop services, machines and servers of a data directory, in this order, within 30 seconds.

    What should run stays noted: the next `up` starts it again. Exit code 3: no stack was ever started there.
    """
    from hatchery_cli.embedded.downing import bring_down
    from hatchery_cli.embedded.layout import Layout, default_directory

    layout = Layout(directory.absolute() if directory else default_directory())
    if not layout.exists:
        typer.echo(f"no stack was ever started in {layout.root}")
        raise typer.Exit(3)
    typer.echo(bring_down(layout))
