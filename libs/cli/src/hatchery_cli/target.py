"""Which stack an operator's command works on: a data directory, or servers and keys named by the environment."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from hatchery_common.errors import SetupError
from hatchery_common.log import configure

from hatchery_cli.embedded.layout import Choices, Layout, default_directory
from hatchery_cli.embedded.stack import database_url, nats_url
from hatchery_cli.errors import NotRunning
from hatchery_cli.urls import require_database_url


@dataclass(frozen=True)
class Target:
    """The servers and the root key of one stack."""

    root_key: bytes
    database_url: str
    nats_url: str
    layout: Layout | None
    choices: Choices


def silence_logs() -> None:
    """Operators' commands report by themselves; the library's log lines would only mix with their output."""
    configure(level=logging.CRITICAL)


def find_target(
    directory: Path | None, *, database: str | None = None, bus: str | None = None, need_database: bool = True
) -> Target:
    """The stack in the directory; where none is named, HATCHERY_ROOT_KEY with the given URLs (compose, external servers)."""
    silence_logs()
    require_database_url(database)
    layout = Layout(directory.absolute() if directory else default_directory())
    given = os.environ.get("HATCHERY_ROOT_KEY")
    if layout.exists and (given is None or directory is not None or _is_key_of(layout, given)):
        choices = layout.choices()
        return Target(
            layout.root_key(), database or database_url(layout, choices), bus or nats_url(choices), layout, choices
        )
    if directory is not None:  # whoever names one means none other
        raise NotRunning(
            f"no stack was ever started in {layout.root}",
            hint="name the directory of a stack; to work with HATCHERY_ROOT_KEY and URLs alone, leave --dir out",
        )
    if given is None:
        raise NotRunning(
            f"no stack was ever started in {layout.root}, and HATCHERY_ROOT_KEY is not set",
            hint="start one with `hatchery up`, name its directory with --dir, or set HATCHERY_ROOT_KEY and the URLs",
        )
    try:
        root_key = bytes.fromhex(given.strip())
    except ValueError as error:
        raise SetupError("HATCHERY_ROOT_KEY is not hex", hint="32 bytes in hex: openssl rand -hex 32") from error
    if need_database and database is None:
        raise SetupError("no database is named", hint="set HATCHERY_ADMIN_DATABASE_URL or pass --database-url")
    return Target(root_key, database or "", bus or nats_url(Choices()), None, Choices())


def _is_key_of(layout: Layout, given: str) -> bool:
    return layout.root_key_file.read_text().strip() == given.strip()
