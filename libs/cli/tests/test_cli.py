"""The command line itself: quick, lazy, and clear about errors."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.text
from hatchery_cli import main
from hatchery_common.testing.ports import free_port

HEAVY = ("fastapi", "sqlalchemy", "nats", "pydantic", "httpx", "asyncpg", "psutil", "structlog")


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from hatchery_cli import main
for name in main.COMMANDS:
    if main.exists(name):
        main.load(name)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in main.COMMANDS if main.exists(name)])
def test_every_command_loads_and_has_a_sentence(name: str) -> None:
    command = main.load(name)
    assert command.help
    assert importlib.import_module(f"hatchery_cli.commands.{name.replace('-', '_')}").__doc__


def hatchery(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hatchery_cli", *words], capture_output=True, text=True, check=False)


def test_help_lists_commands() -> None:
    done = hatchery("--help")
    assert done.returncode == 0
    assert "status" in done.stdout


def commands(command: Any, path: str = "hatchery") -> list[tuple[str, Any]]:
    """The command and all below it, with their paths."""
    below = (
        {name: main.load(name) for name in main.COMMANDS} if path == "hatchery" else getattr(command, "commands", {})
    )
    return [(path, command), *(one for name, sub in below.items() for one in commands(sub, f"{path} {name}"))]


def test_no_help_text_holds_what_the_terminal_takes_for_markup() -> None:
    broken: list[str] = []
    for path, command in commands(main.build()):
        for name, text in [
            ("", command.help),
            *((param.name, getattr(param, "help", None)) for param in command.params),
        ]:
            if text and rich.text.Text.from_markup(text).plain != text:
                broken.append(f"{path} {name}: {text}")
    assert not broken, "say a default by show_default=, escape other brackets"


def test_defaults_that_are_found_out_are_shown() -> None:
    for words, default in (
        (("up",), "at first one process"),
        (("run",), "[default: (all)]"),
        (("bus", "migrate"), "from the root key"),
        (("stream", "ls"), "HATCHERY_DIR, or"),
    ):
        shown = " ".join(hatchery(*words, "--help").stdout.replace("│", "").split())
        assert default in shown


def test_status_and_down_where_nothing_ever_ran(place: Path) -> None:
    done = hatchery("status", "--dir", str(place / "none"), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["phase"] == "stopped"
    assert "no stack was ever started" in hatchery("down", "--dir", str(place / "none")).stdout


def test_typed_errors_are_printed_with_code_and_remedy(place: Path) -> None:
    (place / "file").write_text("")
    done = hatchery("up", "--dir", str(place / "file" / "x"))
    assert done.returncode == 1
    assert done.stderr.startswith("error[place_unusable]: ")
    assert "→ " in done.stderr


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (("stream", "ls", "--nats-url", "nats://127.0.0.1:{port}"), "nats://127.0.0.1:{port}"),
        (("billing", "verify", "--database-url", "postgresql://a:b@127.0.0.1:{port}/x"), "('127.0.0.1', {port})"),
    ],
)
def test_a_server_that_does_not_answer_is_named_with_a_remedy(
    words: tuple[str, ...], address: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCHERY_ROOT_KEY", "ab" * 32)
    monkeypatch.setenv("HATCHERY_DIR", str(place / "none"))
    port = free_port()
    done = hatchery(*(word.format(port=port) for word in words))
    assert done.returncode == 1
    assert address.format(port=port) in done.stderr
    assert "→ is it running? see `hatchery status`" in done.stderr


def test_run_ends_at_once_and_names_every_missing_setting() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HATCHERY_")}
    command = [sys.executable, "-m", "hatchery_cli", "run", "api", "billing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("error[settings]: ")
    for variable in ("api: ", "HATCHERY_API_WEBSITE_JWT_SECRET", "HATCHERY_API_OA_INTERNAL_KEY", "billing: "):
        assert variable in done.stderr
    assert done.stderr.count("HATCHERY_DATABASE_URL") == 2
    assert "Traceback" not in done.stderr + done.stdout
