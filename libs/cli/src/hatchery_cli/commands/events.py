"""`hatchery events`: the story of one instance, with causes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatchery_cli.commands.bus import Seed, Url
from hatchery_cli.options import AsJson, Directory

if TYPE_CHECKING:
    from hatchery_cli.story import Chapter

app = typer.Typer(add_completion=False)


@app.command()
def events(
    instance: Annotated[str, typer.Option("--instance", "-i", help="The instance's id (ins_…).")],
    directory: Directory = None,
    nats_url: Url = None,
    seed: Seed = None,
    since: Annotated[str | None, typer.Option(help="From this time on: 15m, 2h, 3d ago, or ISO 8601.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also metering and model calls.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what happened to an instance and why: wishes, facts and dead letters in order of time.

    Indented lines were caused by a line above; `← n` says by which.
    """
    chapters = asyncio.run(_chapters(instance, directory, nats_url, seed, since, everything))
    if as_json:
        typer.echo(json.dumps([_data(chapter) for chapter in chapters], indent=2))
        return
    _print(chapters)


async def _chapters(
    instance: str, directory: Any, url: str | None, seed: str | None, since: str | None, everything: bool
) -> list[Chapter]:
    from hatchery_common.bus.scratch import Start
    from hatchery_common.errors import InvalidInput
    from hatchery_common.ids import is_token

    from hatchery_cli.operating import moment, operator
    from hatchery_cli.story import collect

    if not is_token(instance):
        raise InvalidInput(f"{instance!r} is no instance id", hint="it looks like ins_…")
    start = Start(time=moment(since)) if since else Start()
    async with operator(directory, url, seed) as bus:
        return await collect(bus, instance, start=start, everything=everything)


def _data(chapter: Chapter) -> dict[str, Any]:
    from hatchery_cli.operating import as_data

    return {"number": chapter.number, "caused_by": chapter.cause, "depth": chapter.depth, **as_data(chapter.record)}


def _print(chapters: list[Chapter]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hatchery_cli.operating import gist, short_type
    from hatchery_cli.terminal import console

    colours = {"CMD": "cyan", "EVT": "green", "DLQ": "red"}
    table = Table("n", "time", "after", "what", "from", "", "details", box=None)
    before = None
    for chapter in chapters:
        record = chapter.record
        after = "" if before is None else f"+{(record.time - before).total_seconds():.3f}"
        before = record.time
        name = f"{'  ' * min(chapter.depth, 6)}[{colours[record.stream]}]{escape(short_type(record))}[/]"
        table.add_row(
            str(chapter.number),
            f"{record.time:%m-%d %H:%M:%S}.{record.time.microsecond // 1000:03}",
            after,
            name,
            escape(record.headers.get("ce-source", "").removeprefix("hatchery/")),
            f"← {chapter.cause}" if chapter.cause else "",
            escape(_details(record, gist(record))),
        )
    console().print(table)


def _details(record: Any, text: str) -> str:
    from hatchery_common.bus.deadletter import CODE, REASON

    if record.stream != "DLQ":
        return text
    return f"dead letter: {record.headers.get(CODE)}: {record.headers.get(REASON)}"
