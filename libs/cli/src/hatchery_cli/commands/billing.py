"""`hatchery billing`: verify the ledger, rebuild it from the event log."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatchery_cli.options import AsJson, Directory

if TYPE_CHECKING:
    from hatchery_common.bus import Delivery
    from hatchery_common.bus.connection import Connection

    from hatchery_cli.target import Target

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The ledger: verify it, rebuild it.")
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", envvar="HATCHERY_ADMIN_DATABASE_URL", help="Postgres as its administrator."),
]
NatsUrl = Annotated[str | None, typer.Option("--nats-url", envvar="HATCHERY_NATS_URL", help="The NATS server.")]
_SCHEMA = "billing"
_STREAM = "EVT"


@app.callback()
def group() -> None:
    """The ledger: verify it, rebuild it."""


@app.command()
def verify(directory: Directory = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Check every rule of the ledger on its rows; exits 1 on findings."""
    from hatchery_cli.target import find_target

    target = find_target(directory, database=database_url)

    async def work() -> Any:
        async with telling(is_terminal=sys.stderr.isatty()) as progress:
            return await _audit().verify(_role_url(target), progress=progress)

    _print(asyncio.run(work()), as_json=as_json)


@asynccontextmanager
async def telling(*, is_terminal: bool, every_s: float = 1.0) -> AsyncGenerator[Callable[[str], None]]:
    """A place to note how far the work is; where a person looks on, what is new there is said every second."""
    latest = said = ""

    def note(text: str) -> None:
        nonlocal latest
        latest = text

    async def tell() -> None:
        nonlocal said
        while True:
            await asyncio.sleep(every_s)
            if latest != said:
                typer.echo(latest, err=True)
                said = latest

    task = asyncio.create_task(tell()) if is_terminal else None
    try:
        yield note
    finally:
        if task is not None:
            task.cancel()


@app.command()
def rebuild(
    directory: Directory = None,
    database_url: DatabaseUrl = None,
    nats_url: NatsUrl = None,
    as_json: AsJson = False,
) -> None:
    """Replay the event log into shadow tables and compare with the live ledger; exits 1 when they differ. Changes nothing."""
    from hatchery_cli.target import find_target

    target = find_target(directory, database=database_url, bus=nats_url)
    _print(asyncio.run(_rebuild(target)), as_json=as_json)


async def _rebuild(target: Target) -> Any:
    from hatchery_common.bus.authorization import ADMIN
    from hatchery_common.bus.connection import Connection

    from hatchery_cli.rendering import nkey_seed

    audit = _audit()
    connection = Connection(target.nats_url, ADMIN, nkey_seed(target.root_key, ADMIN))
    await connection.open()
    try:
        settled_to = await _settled_to(connection)  # before the ledger is read: what was settled then is in it
        events = stored_events(connection, audit.MONEY_EVENTS)
        return await audit.rebuild(_role_url(target), events, settled_to=settled_to)
    finally:
        await connection.close()


async def _settled_to(connection: Connection) -> int | None:
    """The sequence up to which billing has acknowledged every money event; None when it has no durable."""
    from hatchery_common.bus.jetstream import JetStream
    from hatchery_common.bus.registry import durable_name

    info = await JetStream(connection).find(f"CONSUMER.INFO.{_STREAM}.{durable_name(_SCHEMA, batch=True)}")
    return None if info is None else int(info["ack_floor"]["stream_seq"])


async def stored_events(connection: Any, types: Any) -> AsyncGenerator[Delivery[Any]]:
    """All events of these types on the stream, in its order, up to its present end."""
    from hatchery_common.bus.direct import DirectReader
    from hatchery_common.bus.envelope import Placed, decode
    from hatchery_common.bus.errors import UnreadableMessage
    from hatchery_common.bus.registry import Registry

    registry = Registry(types)
    async for stored in DirectReader(connection).read(_STREAM, "evt.>"):
        if registry.find(stored.headers.get("ce-type", "")) is None:
            continue
        try:
            yield decode(
                _AsRaw(stored.subject, stored.data, stored.headers), registry, Placed(_STREAM, stored.sequence, 1)
            )
        except UnreadableMessage:
            continue  # the live consumer gave it to the dead letters


@dataclasses.dataclass
class _AsRaw:
    """A stored message in the shape of a received one."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    reply: str = ""


def _role_url(target: Target) -> str:
    from hatchery_cli.rendering import role_url

    return role_url(target.root_key, _SCHEMA, target.database_url)


def _audit() -> Any:
    """The audit of the installed ledger, found by its entry point: the command line knows no service."""
    from importlib.metadata import entry_points

    from hatchery_cli.errors import PythonBroken

    for point in entry_points(group="hatchery.audits", name=_SCHEMA):
        return point.load()
    raise PythonBroken("the service billing is not installed here", hint="install it, or run this where it runs")


def _print(report: Any, *, as_json: bool) -> None:
    figures = {name: value for name, value in dataclasses.asdict(report).items() if name != "findings"}
    findings = [dataclasses.asdict(finding) for finding in report.findings]
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **figures, "findings": findings}))
    else:
        for finding in findings:
            colour, word = ("yellow", "warning") if finding["is_warning"] else ("red", "error")
            typer.secho(f"{word}[{finding['code']}]: {finding['message']} ({finding['count']})", fg=colour)
            for example in finding["examples"]:
                typer.echo(f"    {example}")
        typer.secho(
            "the ledger is sound" if report.ok else "the ledger is NOT sound", fg="green" if report.ok else "red"
        )
        typer.echo(", ".join(f"{value} {name}" for name, value in figures.items()))
    if not report.ok:
        raise typer.Exit(1)
