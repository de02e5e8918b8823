"""`hatchery stream`: look into the streams, replay them, handle dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatchery_cli.commands.bus import Seed, Url
from hatchery_cli.commands.stream_dlq import app as dlq
from hatchery_cli.options import AsJson, Directory

if TYPE_CHECKING:
    from hatchery_common.bus.scratch import Record, Start

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Streams: list, tail, show, replay; dead letters.")
app.add_typer(dlq, name="dlq")
Name = Annotated[str, typer.Argument(help="CMD, EVT, THREADS or DLQ.")]
Subject = Annotated[
    list[str] | None, typer.Option("--subject", "-s", help="Only subjects that match, e.g. 'evt.*.instance.>'.")
]
Since = Annotated[str | None, typer.Option(help="From this time on: 15m, 2h, 3d ago, or ISO 8601.")]
FromSeq = Annotated[int | None, typer.Option("--from-seq", min=1, help="From this sequence on.")]


@app.command("ls")
def list_streams(directory: Directory = None, nats_url: Url = None, seed: Seed = None, as_json: AsJson = False) -> None:
    """Show all streams and how far each durable is behind."""
    found = asyncio.run(_overview(directory, nats_url, seed))
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    from rich.table import Table

    from hatchery_cli.terminal import console

    table = Table("stream", "messages", "size", "sequences", "durable", "behind", "in flight", "redelivered", box=None)
    for stream in found:
        head = (stream["name"], f"{stream['messages']:,}", f"{stream['bytes'] / 1024:,.0f} KiB", stream["sequences"])
        rows = stream["durables"] or [{"name": "", "pending": "", "unacknowledged": "", "redelivered": ""}]
        for number, durable in enumerate(rows):
            cells = head if number == 0 else ("", "", "", "")
            table.add_row(
                *cells, durable["name"], *(str(durable[k]) for k in ("pending", "unacknowledged", "redelivered"))
            )
    console().print(table)


async def _overview(directory: Any, url: str | None, seed: str | None) -> list[dict[str, Any]]:
    from hatchery_cli.operating import operator

    async with operator(directory, url, seed) as bus:
        return [
            {
                **asdict(state),
                "sequences": f"{state.first_sequence}-{state.last_sequence}",
                "durables": [asdict(durable) for durable in await bus.durables(state.name)],
            }
            for state in await bus.streams()
        ]


@app.command()
def tail(
    stream: Name,
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    subject: Subject = None,
    since: Since = None,
    from_seq: FromSeq = None,
    last: Annotated[int, typer.Option("-n", min=0, help="So many from the end, unless a start is given.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the latest messages of a stream, one a line; with --json one object a line."""
    try:
        asyncio.run(_tail(stream, directory, nats_url, seed, subject, _start(since, from_seq, last), follow, as_json))
    except KeyboardInterrupt:
        raise typer.Exit from None


async def _tail(
    stream: str,
    directory: Any,
    url: str | None,
    seed: str | None,
    subject: list[str] | None,
    start: Start,
    follow: bool,
    as_json: bool,
) -> None:
    from hatchery_cli.operating import operator, stream_name

    async with operator(directory, url, seed) as bus:
        read = bus.tail if follow else bus.read
        async with aclosing(read(stream_name(stream), subjects=subject or (), start=start)) as records:
            await _print_lines(records, as_json=as_json)


async def _print_lines(records: AsyncGenerator[Record], *, as_json: bool) -> None:
    from hatchery_cli.operating import as_data, gist, short_type

    async for record in records:
        if as_json:
            typer.echo(json.dumps(as_data(record)))
            continue
        place = record.subject.rpartition(".")[2]
        typer.echo(
            f"{record.sequence:>8}  {record.time:%m-%d %H:%M:%S}.{record.time.microsecond // 1000:03}  "
            f"{short_type(record):<28} {place}  {gist(record)}"
        )


@app.command()
def show(
    stream: Name,
    sequence: Annotated[int, typer.Argument(min=1, help="The message's sequence.")],
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Show one message whole: envelope, headers and body."""
    from hatchery_cli.operating import as_data

    record = asyncio.run(_show(stream, sequence, directory, nats_url, seed))
    data = {**as_data(record), "headers": record.headers}
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    from rich.json import JSON

    from hatchery_cli.terminal import console

    screen = console()
    for name, value in data.items():
        if name not in ("body", "headers") and value is not None:
            screen.print(f"{name:>12}  {value}", markup=False)
    screen.print(JSON(json.dumps(data["body"])))


async def _show(stream: str, sequence: int, directory: Any, url: str | None, seed: str | None) -> Record:
    from hatchery_cli.operating import operator, stream_name

    async with operator(directory, url, seed) as bus:
        return await bus.show(stream_name(stream), sequence)


@app.command()
def replay(
    stream: Name,
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    since: Since = None,
    from_seq: FromSeq = None,
    subject: Subject = None,
    to: Annotated[
        str | None, typer.Option("--to", help="The durable that shall read again, e.g. billing-batch.")
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it; without this only what would happen is shown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a durable read a stream again from a point; inboxes keep effects from happening twice. Dry by default.

    Nothing is published: history stays as it is, and only the named durable goes back. It never goes forward: a start
    beyond what it has not done yet is refused. --subject narrows what the dry run counts. To rebuild a read model from
    nothing, use that service's own rebuild (`hatchery billing rebuild`).
    """
    _require_sense(start_given=since is not None or from_seq is not None, execute=execute, to=to, subject=subject)
    start = _start(since, from_seq, 0)
    report = asyncio.run(_replay(stream, directory, nats_url, seed, start, subject, to, execute))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _tell(report)


def _require_sense(*, start_given: bool, execute: bool, to: str | None, subject: list[str] | None) -> None:
    from hatchery_common.errors import InvalidInput

    if not start_given:
        raise InvalidInput("replay needs a start", hint="give --since 2h or --from-seq 1")
    if execute and to is None:
        raise InvalidInput("replay needs a durable", hint="`hatchery stream ls` shows them; name one with --to")
    if execute and subject:
        raise InvalidInput("a durable reads all of its subjects again", hint="leave out --subject")


def _tell(report: dict[str, Any]) -> None:
    if report["messages"] == 0:
        reader = f"no message that {report['to']} reads" if report["to"] else "no message"
        typer.echo(f"nothing matches: {report['stream']} holds {reader} from there on; nothing was changed")
        return
    typer.echo(f"{report['messages']} messages of {report['stream']} from sequence {report['from_sequence']} on")
    for kind, count in report["types"].items():
        typer.echo(f"  {count:>8}  {kind}")
    if report["done"]:
        typer.echo(f"{report['to']} reads them again now; effects that are done already are skipped by its inbox")
    else:
        typer.echo("nothing was changed: repeat it with --to <durable> --execute")


async def _replay(
    stream: str,
    directory: Any,
    url: str | None,
    seed: str | None,
    start: Start,
    subject: list[str] | None,
    to: str | None,
    execute: bool,
) -> dict[str, Any]:
    from hatchery_cli.operating import operator, short_type, stream_name

    name = stream_name(stream)
    async with operator(directory, url, seed) as bus:
        subjects = subject or (() if to is None else (await bus.durable(name, to)).filters)
        types: dict[str, int] = {}
        first: int | None = None
        async with aclosing(bus.read(name, subjects=subjects, start=start)) as records:
            async for record in records:
                first = record.sequence if first is None else first
                types[short_type(record)] = types.get(short_type(record), 0) + 1
        if to is not None and first is not None:
            await (bus.reset if execute else bus.require_all_done_before)(name, to, first)
    return {
        "stream": name,
        "to": to,
        "from_sequence": first,
        "messages": sum(types.values()),
        "types": dict(sorted(types.items())),
        "done": execute and first is not None,
    }


def _start(since: str | None, from_seq: int | None, last: int) -> Start:
    from hatchery_common.bus.scratch import Start
    from hatchery_common.errors import InvalidInput

    from hatchery_cli.operating import moment

    if since is not None and from_seq is not None:
        raise InvalidInput("--since and --from-seq exclude each other", hint="give one start")
    if from_seq is not None:
        return Start(sequence=from_seq)
    return Start(time=moment(since)) if since is not None else Start(last=last)
