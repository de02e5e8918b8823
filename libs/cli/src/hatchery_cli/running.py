"""Runs services in this process, prepared and configured for a stack if one is named."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from hatchery_common.errors import DependencyUnavailable, HatcheryError, InvalidInput, SetupError
from hatchery_common.log import configure
from hatchery_common.run import installed_services, run_services

from hatchery_cli.embedded.layout import Layout
from hatchery_cli.embedded.stack import environment
from hatchery_cli.embedded.supervisor import ended
from hatchery_cli.errors import PrepareFailed
from hatchery_cli.main import failed
from hatchery_cli.preparing import prepare as prepare_stack

_PATIENCE_S = 8.0


def run_named(names: Sequence[str], stack: Path | None, *, prepare: bool, given: Mapping[str, str]) -> None:
    """Run the named services (none: all) until a signal; raises InvalidInput for an unknown name."""
    installed = installed_services()
    unknown = [name for name in names if name not in installed]
    if unknown:
        raise InvalidInput(f"no service is called {', '.join(unknown)}", hint=f"there are {', '.join(installed)}")
    if prepare and stack is None:
        raise SetupError("--prepare needs --stack", hint="without a stack use `hatchery db migrate` and `bus migrate`")
    configure(level=_level(given))
    if prepare and stack is not None:
        _prepare_apart(stack, given)
    asyncio.run(_run(list(names) or list(installed), stack, given=given))


def _prepare_apart(stack: Path, given: Mapping[str, str]) -> None:
    """Prepare in a child of its own: what it learns of the root key and of others' passwords must not stay in a service."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _prepare_and_tell(stack, given)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise PrepareFailed(f"the preparation {ended(code)}", hint="start again; if that repeats, look at the memory")
    if code != 0:
        sys.exit(code)  # the child has said why


def _prepare_and_tell(stack: Path, given: Mapping[str, str]) -> int:
    """Prepare; returns the exit code, after telling why it is not 0."""
    try:
        asyncio.run(_prepare(stack, given))
    except HatcheryError as error:
        return failed(error, as_json=False)
    except Exception as error:  # noqa: BLE001 - this process ends here, and whatever ends it must be told
        traceback.print_exc()
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        message = f"the database or the bus could not be prepared: {type(error).__name__}: {error}"
        return failed(PrepareFailed(message, hint="see the lines above"), as_json=False)
    return 0


async def _prepare(stack: Path, given: Mapping[str, str]) -> None:
    layout = Layout(stack)
    services = list(installed_services().values())
    await _patiently(lambda: prepare_stack(layout, layout.choices(), services, given))


def _level(given: Mapping[str, str]) -> int:
    name = given.get("HATCHERY_LOG_LEVEL", "info")
    level = logging.getLevelNamesMapping().get(name.upper())
    if level is None:
        raise SetupError(f"HATCHERY_LOG_LEVEL is {name}", hint="one of debug, info, warning, error")
    return level


async def _run(names: Sequence[str], stack: Path | None, *, given: Mapping[str, str]) -> None:
    installed = installed_services()
    settings = dict(given)
    if stack is not None:
        layout = Layout(stack)
        settings = environment(layout, layout.choices(), given)
    await run_services([installed[name] for name in names], settings)


async def _patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Do it again while a server is still on its way up: all three may have crashed together."""
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            await work()
        except* HatcheryError as several:
            refused = [one for one in several.exceptions if not isinstance(one, DependencyUnavailable)]
            first = (refused or several.exceptions)[0]
        else:
            return
        if not isinstance(first, DependencyUnavailable) or asyncio.get_running_loop().time() > end:
            raise first
        await asyncio.sleep(0.2)
