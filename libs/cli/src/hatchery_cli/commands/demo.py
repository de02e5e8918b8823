"""`hatchery demo`: a website against a fresh stack in a temporary directory."""

from __future__ import annotations

from typing import Annotated

import typer

from hatchery_cli.options import AsJson

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running and its directory in place.")] = False,
) -> None:
    """Start a stack of its own, act as a website over HTTP, print the timeline, and check that nothing is left.

    It provisions an instance, follows its progress, chats, stops and starts it, chats again in the same session, reads the
    ledger and deletes everything. With --json the last line is one object with the figures; exit 0 means that all was well.
    """
    from hatchery_cli.demo.play import play

    raise typer.Exit(play(as_json=as_json, keep=keep))
