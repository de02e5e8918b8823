"""The life of one `hatchery up`: prepare, start, say where to click, watch, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hatchery_common.errors import SetupError

from hatchery_cli.embedded import node, openclaw, postgres
from hatchery_cli.embedded.isolation import missing_isolation
from hatchery_cli.embedded.layout import Choices, Layout, default_directory
from hatchery_cli.embedded.stack import Stack, environment, is_owned, owned
from hatchery_cli.embedded.state import read_state
from hatchery_cli.embedded.supervisor import Condition
from hatchery_cli.embedded.welcome import welcome
from hatchery_cli.errors import AlreadyRunning, ServerFailed
from hatchery_cli.terminal import Patient
from hatchery_cli.urls import require_database_url

_DETACHED_WITHIN_S = 1800.0  # longer than any part of it waits for itself
_ENDS_WITHIN_S = 35.0
_NOTE = "HATCHERY_UP_NOTE"  # from `up --detach` to its child: what came of the installation
console = Patient(highlight=False, soft_wrap=True)


def run_up(
    directory: Path | None,
    *,
    port: int | None,
    detach: bool,
    nats_url: str | None,
    database_url: str | None,
    processes: bool | None = None,
    trust_all_users: bool | None = None,
) -> None:
    """Start the stack of this directory, in this process or detached from it; raises a SetupError with its remedy."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # like Ctrl-C: what was begun, npm or a child, ends with us
    layout = Layout(directory or default_directory())
    layout.create()
    if is_owned(layout):
        raise AlreadyRunning(
            f"a stack already runs in {layout.root}", hint="see `hatchery status`; stop it with `hatchery down`"
        )
    layout.root_key()
    tried = os.environ.pop(_NOTE, None)
    if tried is None:
        given = {"port": port, "nats_url": nats_url, "database_url": database_url, "processes": processes,
                 "trust_all_users": trust_all_users}  # fmt: skip
        choices = chosen(layout.remembered(), given)
        require_database_url(choices.database_url)
        note = install()
    else:  # we are the child of a detached start, which has chosen and installed
        choices, note = layout.choices(), tried
    if detach:
        _detach(layout, choices, note or "")
    else:
        asyncio.run(_foreground(layout, choices, note))


def chosen(before: Choices, given: Mapping[str, Any]) -> Choices:
    """What was chosen before, with what is given now; an empty URL means our own server again."""
    return replace(
        before, **{name: None if value == "" else value for name, value in given.items() if value is not None}
    )


def install() -> str | None:
    """Put Postgres, Node and OpenClaw into the cache, once; returns a warning when OpenClaw could not be had."""
    postgres.ensure_binaries()
    node.ensure_node()
    if os.environ.get("HATCHERY_PROVISIONER_OPENCLAW") or openclaw.is_installed():
        return None  # the operator brought their own, or it is there
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("installing OpenClaw " + openclaw.version()), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("openclaw", total=None)
            openclaw.ensure_openclaw(lambda done, total: bar.update(task, completed=done, total=total))
    except SetupError as error:
        text = f"OpenClaw is not installed: {error.message}"
        console.print(f"warning[{error.code}]: {text}", style="yellow", markup=False)
        console.print(f"  → {error.hint}; then run `hatchery openclaw install`", markup=False)
        console.print("  Everything else starts; machines end in `error` until then.", markup=False)
        return text
    return None


async def _foreground(layout: Layout, choices: Choices, note: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, stop.set)
    with owned(layout), _attempt(layout, choices):
        stack = Stack(layout, choices, _Teller().tell)
        stack.state.phase("starting")
        if note:
            stack.state.note(note)
        warning = _missing_isolation(layout, choices)
        stack.state.isolation(warning)
        started = time.monotonic()
        if not await _start(stack, stop):
            return
        with contextlib.suppress(OSError):  # on a full disk the stack runs all the same, with what is being tried
            layout.remember(choices)
        console.print(welcome(layout, choices, time.monotonic() - started, warning=warning))
        await stop.wait()
        console.print("stopping: services, machines, servers …")
        started = time.monotonic()
        killed = await stack.stop()
        extra = f"; {len(killed)} machines had to be killed" if killed else ""
        console.print(f"stopped in {time.monotonic() - started:.1f} s{extra}. What should run starts with the next up.")


def _missing_isolation(layout: Layout, choices: Choices) -> str | None:
    return missing_isolation(environment(layout, choices, dict(os.environ)))


@contextlib.contextmanager
def _attempt(layout: Layout, choices: Choices) -> Generator[None]:
    """Run with these choices, which are kept when the stack gets ready and forgotten when it does not."""
    layout.attempt(choices)
    try:
        yield
    finally:
        layout.end_attempt()


async def _start(stack: Stack, stop: asyncio.Event) -> bool:
    """Start unless a stop is asked for meanwhile; the state file holds the error for whoever waits on it."""
    starting = asyncio.create_task(stack.start(), name="start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
        stack.state.phase("stopped")
        return False
    try:
        starting.result()
    except SetupError as error:
        stack.state.phase("failed", {"code": error.code, "message": error.message, "hint": error.hint})
        raise
    except BaseException as error:
        stack.state.phase("failed", {"code": "internal", "message": str(error), "hint": None})
        raise
    return True


class _Teller:
    """Prints what an operator should see: the first start of each part, crashes, and recoveries."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._waiting: dict[str, str] = {}

    def tell(self, name: str, condition: Condition) -> None:
        self.tell_waiting(name, condition.waiting)
        before = self._seen.get(name)
        self._seen[name] = condition.state
        if condition.state == before:
            return
        if condition.state == "restarting":
            console.print(f"{name} {condition.reason}", markup=False)
        elif condition.state == "ready":
            again = f" again (restart {condition.restarts})" if condition.restarts else ""
            console.print(f"{name} is ready{again}, pid {condition.pid}")

    def tell_waiting(self, name: str, waiting: str | None) -> None:
        """Print what a start that takes long waits for, once."""
        if waiting is not None and waiting != self._waiting.get(name):
            self._waiting[name] = waiting
            console.print(f"{name} {waiting}", markup=False)


def _detach(layout: Layout, choices: Choices, note: str) -> None:
    """Start `up` in a session of its own and wait until it is ready or says why not; whatever ends the wait early ends it."""
    log = layout.logs / "up.log"
    layout.attempt(choices)
    began = time.time()
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "hatchery_cli", "up", "--dir", str(layout.root)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, cwd="/", env={**os.environ, _NOTE: note},
        )  # fmt: skip
    try:
        _until_up(layout, child, log)
    except BaseException:
        _give_up(child)
        raise
    warning = _missing_isolation(layout, choices)
    console.print(welcome(layout, choices, time.time() - began, detached=True, warning=warning))


def _until_up(layout: Layout, child: subprocess.Popen[bytes], log: Path) -> None:
    teller = _Teller()
    end = time.monotonic() + _DETACHED_WITHIN_S
    while time.monotonic() < end:
        state = read_state(layout) or {}
        ours = state if state.get("pid") == child.pid else {}
        for name, part in ours.get("parts", {}).items():
            teller.tell_waiting(name, part["waiting"])
        if ours.get("phase") == "ready":
            return
        if child.poll() is not None:
            raise _why(layout, ours, log)
        time.sleep(0.03)
    raise ServerFailed(f"the stack was not ready within {_DETACHED_WITHIN_S:.0f} s", hint=f"see {log}")


def _give_up(child: subprocess.Popen[bytes]) -> None:
    """Let it end in order, as far as it has come."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_ENDS_WITHIN_S)


def _why(layout: Layout, state: dict[str, object], log: Path) -> SetupError:
    error = state.get("error")
    if isinstance(error, dict):
        failed = SetupError(str(error.get("message")), hint=str(error.get("hint") or f"see {log}"))
        failed.code = str(error.get("code"))  # pyright: ignore[reportAttributeAccessIssue] - the code that `up` reported
        return failed
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-5:]
    return ServerFailed(f"the stack in {layout.root} did not start: {' | '.join(lines)}", hint=f"see {log}")
