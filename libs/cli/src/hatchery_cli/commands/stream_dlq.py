"""`hatchery stream dlq`: messages that could not be handled, and sending them again."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Annotated, Any

import typer

from hatchery_cli.commands.bus import Seed, Url
from hatchery_cli.options import AsJson, Directory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Dead letters: list them, send them again.")
Code = Annotated[str | None, typer.Option(help="Only those with this code.")]
Durable = Annotated[str | None, typer.Option(help="Only those that this durable gave up.")]


@app.command("ls")
def list_dead(
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    code: Code = None,
    durable: Durable = None,
    as_json: AsJson = False,
) -> None:
    """Show dead letters with the reason, who gave them up, and where they came from."""
    found = asyncio.run(_letters(directory, nats_url, seed, code, durable))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo("no dead letters")
        return
    from rich.table import Table

    from hatchery_cli.terminal import console

    table = Table("sequence", "time", "type", "id", "durable", "tries", "code", "reason", box=None)
    for letter in found:
        cells = [letter[k] for k in ("sequence", "time", "type", "id", "durable", "deliveries", "code", "reason")]
        table.add_row(*(str(cell or "") for cell in cells))
    console().print(table)


@app.command()
def redrive(
    sequences: Annotated[list[int] | None, typer.Argument(help="Sequences in DLQ (see `dlq ls`).")] = None,
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All dead letters that match --code and --durable.")
    ] = False,
    code: Code = None,
    durable: Durable = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it; without this only what would happen is shown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to their original subject again, with the id that they had. Dry by default.

    A consumer whose inbox says `done` for that id skips it; one that says `dead` handles it.
    """
    from hatchery_common.errors import InvalidInput

    if bool(sequences) == everything:
        raise InvalidInput("name the dead letters by sequence, or say --all", hint="`hatchery stream dlq ls`")
    report = asyncio.run(_redrive(directory, nats_url, seed, sequences or [], everything, code, durable, execute))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for letter in report["letters"]:
        sent = f"→ {letter['sent_as']}" if letter["sent_as"] else "would be sent again"
        typer.echo(f"{letter['sequence']:>8}  {letter['type']}  {letter['subject']}  {sent}")
    if not execute and report["letters"]:
        typer.echo("nothing was sent: repeat it with --execute")


async def _letters(
    directory: Any, url: str | None, seed: str | None, code: str | None, durable: str | None
) -> list[dict[str, Any]]:
    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        return await _read(bus, code, durable)


async def _read(bus: Any, code: str | None, durable: str | None) -> list[dict[str, Any]]:
    from hatchery_common.bus import deadletter as marks

    from hatchery_cli.operating import as_data

    found: list[dict[str, Any]] = []
    async with aclosing(bus.read("DLQ")) as records:
        async for record in records:
            headers = record.headers
            letter = {
                **as_data(record),
                "code": headers.get(marks.CODE),
                "reason": headers.get(marks.REASON),
                "durable": headers.get(marks.DURABLE),
                "deliveries": headers.get(marks.DELIVERIES),
                "from_stream": headers.get(marks.STREAM),
                "from_sequence": headers.get(marks.SEQUENCE),
                "redriven": headers.get(marks.REDRIVE),
            }
            if code in (None, letter["code"]) and durable in (None, letter["durable"]):
                found.append(letter)
    return found


async def _redrive(
    directory: Any,
    url: str | None,
    seed: str | None,
    sequences: list[int],
    everything: bool,
    code: str | None,
    durable: str | None,
    execute: bool,
) -> dict[str, Any]:
    from hatchery_common.errors import NotFound

    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        letters = await _read(bus, code, durable)
        known = {letter["sequence"] for letter in letters}
        missing = sorted(set(sequences) - known)
        if missing:
            raise NotFound(f"no dead letter has sequence {missing[0]}", hint="`hatchery stream dlq ls` shows them")
        chosen = letters if everything else [letter for letter in letters if letter["sequence"] in sequences]
        report: list[dict[str, Any]] = []
        for letter in chosen:
            sent = await bus.redrive(letter["sequence"]) if execute else None
            subject = letter["subject"].removeprefix("dlq.")
            report.append({"sequence": letter["sequence"], "type": letter["type"], "subject": subject, "sent_as": sent})
    return {"executed": execute, "letters": report}
