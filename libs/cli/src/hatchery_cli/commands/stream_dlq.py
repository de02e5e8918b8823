"""`hatchery stream dlq`: messages that could not be handled, sending them again, and setting them aside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatchery_cli.commands.bus import Seed, Url
from hatchery_cli.options import AsJson, Directory

if TYPE_CHECKING:
    from hatchery_common.bus.replay import Operator

    from hatchery_cli.deadletters import Letter

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Dead letters: list, send again, dismiss.")
Code = Annotated[str | None, typer.Option(help="Only those with this code.")]
Durable = Annotated[str | None, typer.Option(help="Only those that this durable gave up.")]
_COLUMNS = ("sequence", "time", "type", "id", "durable", "deliveries", "code", "reason", "ended")


@app.command("ls")
def list_dead(
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    code: Code = None,
    durable: Durable = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only those neither sent again nor dismissed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show dead letters with the reason, who gave them up, where they came from, and what became of them."""
    letters = asyncio.run(_letters(directory, nats_url, seed, code, durable))
    found = [_shown(letter) for letter in letters if letter.is_waiting or not waiting]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo("no dead letters")
        return
    from rich.table import Table

    from hatchery_cli.terminal import console

    table = Table("sequence", "time", "type", "id", "durable", "tries", "code", "reason", "since then", box=None)
    for shown in found:
        shown["ended"] = shown["sent_again_at"] or shown["dismissed_because"]
        table.add_row(*(str(shown[column] or "") for column in _COLUMNS))
    console().print(table)


@app.command()
def redrive(
    sequences: Annotated[list[int] | None, typer.Argument(help="Sequences in DLQ (see `dlq ls`).")] = None,
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that match --code and --durable and were not sent again yet.")
    ] = False,
    code: Code = None,
    durable: Durable = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it; without this only what would happen is shown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to their original subject again, with the id that they had. Dry by default.

    A consumer whose inbox says `done` for that id skips it; one that says `dead` handles it. The letter stays, with a mark.
    """
    from hatchery_common.errors import InvalidInput

    if bool(sequences) == everything:
        raise InvalidInput("name the dead letters by sequence, or say --all", hint="`hatchery stream dlq ls`")
    report = asyncio.run(_redrive(directory, nats_url, seed, sequences or [], code, durable, execute))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for letter in report["letters"]:
        sent = f"→ {letter['sent_as']}" if letter["sent_as"] else "would be sent again"
        typer.echo(f"{letter['sequence']:>8}  {letter['type']}  {letter['subject']}  {sent}")
    if not execute and report["letters"]:
        typer.echo("nothing was sent: repeat it with --execute")


@app.command()
def dismiss(
    sequences: Annotated[list[int], typer.Argument(help="Sequences in DLQ (see `dlq ls`).")],
    because: Annotated[str, typer.Option("--because", help="Why it will not be sent again; kept beside the letter.")],
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Set dead letters aside that nobody will send again: they stay as history and no longer wait. Nothing is deleted."""
    from hatchery_common.errors import InvalidInput

    if not because.strip():
        raise InvalidInput("say why: --because 'a test of ours'")
    subjects = asyncio.run(_dismiss(directory, nats_url, seed, sequences, because.strip()))
    if as_json:
        typer.echo(json.dumps({"dismissed": subjects}, indent=2))
        return
    for number, subject in subjects.items():
        typer.echo(f"{number:>8}  {subject}  dismissed")


async def _letters(
    directory: Any, url: str | None, seed: str | None, code: str | None, durable: str | None
) -> list[Letter]:
    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        return await _matching(bus, code, durable)


async def _matching(bus: Operator, code: str | None, durable: str | None) -> list[Letter]:
    from hatchery_common.bus import deadletter as marks

    from hatchery_cli.deadletters import read_letters

    return [
        letter
        for letter in await read_letters(bus)
        if code in (None, letter.record.headers.get(marks.CODE))
        and durable in (None, letter.record.headers.get(marks.DURABLE))
    ]


def _shown(letter: Letter) -> dict[str, Any]:
    from hatchery_common.bus import deadletter as marks

    from hatchery_cli.operating import as_data

    headers, mark = letter.record.headers, letter.mark
    at = mark.at.isoformat(timespec="milliseconds") if mark else None
    return {
        **as_data(letter.record),
        "code": headers.get(marks.CODE),
        "reason": headers.get(marks.REASON),
        "durable": headers.get(marks.DURABLE),
        "deliveries": headers.get(marks.DELIVERIES),
        "from_stream": headers.get(marks.STREAM),
        "from_sequence": headers.get(marks.SEQUENCE),
        "redriven": headers.get(marks.REDRIVE),
        "sent_again_at": at if mark and mark.sent_as else None,
        "sent_again_as": mark.sent_as if mark else None,
        "dismissed_at": at if mark and mark.reason else None,
        "dismissed_because": mark.reason if mark else None,
    }


async def _redrive(
    directory: Any,
    url: str | None,
    seed: str | None,
    sequences: Sequence[int],
    code: str | None,
    durable: str | None,
    execute: bool,
) -> dict[str, Any]:
    from hatchery_cli.deadletters import redrive as send_again
    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        report: list[dict[str, Any]] = []
        for letter in _chosen(await _matching(bus, code, durable), sequences):
            sent_as = await send_again(bus, letter) if execute else None
            record = letter.record
            subject = record.subject.removeprefix("dlq.")
            report.append({"sequence": record.sequence, "type": record.type, "subject": subject, "sent_as": sent_as})
    return {"executed": execute, "letters": report}


async def _dismiss(
    directory: Any, url: str | None, seed: str | None, sequences: Sequence[int], reason: str
) -> dict[int, str]:
    from hatchery_cli.deadletters import dismiss as set_aside
    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        letters = _chosen(await _matching(bus, None, None), sequences)
        for letter in letters:
            await set_aside(bus, letter, reason)
    return {letter.record.sequence: letter.record.subject.removeprefix("dlq.") for letter in letters}


def _chosen(letters: Sequence[Letter], sequences: Sequence[int]) -> list[Letter]:
    """The named ones, sent again before or not; without names all that wait."""
    from hatchery_common.errors import NotFound

    missing = sorted(set(sequences) - {letter.record.sequence for letter in letters})
    if missing:
        raise NotFound(f"no dead letter has sequence {missing[0]}", hint="`hatchery stream dlq ls` shows them")
    if not sequences:
        return [letter for letter in letters if letter.is_waiting]
    return [letter for letter in letters if letter.record.sequence in sequences]
