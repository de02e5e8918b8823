"""`hatchery healthy`: which port it asks, and how it ends."""

from __future__ import annotations

from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hatchery_cli.commands.healthy import app
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_cli.errors import NotRunning
from typer.testing import CliRunner


class Ready(BaseHTTPRequestHandler):
    """Says that it is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ready as can be")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def health_port() -> Generator[int]:
    """The port of a health listener."""
    server = HTTPServer(("127.0.0.1", 0), Ready)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """No port in the environment, and no stack of this machine."""
    for name in ("HATCHERY_HEALTH_BASE_PORT", "HATCHERY_ROOT_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HATCHERY_DIR", str(place / "none"))


def stack_with(layout: Layout, health_port: int) -> Layout:
    """The directory of a stack whose billing answers on that port."""
    layout.root_key()
    layout.remember(Choices(port=health_port - 12))
    return layout


def healthy(*words: str) -> tuple[int, str]:
    """How it ended, and what it said."""
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def test_a_named_directory_says_the_port(layout: Layout, health_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_HEALTH_BASE_PORT", "1")
    stack_with(layout, health_port)
    assert healthy("billing", "--dir", str(layout.root)) == (0, "ready as can be\n")


def test_hatchery_dir_says_the_port(layout: Layout, health_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_DIR", str(stack_with(layout, health_port).root))
    assert healthy("billing")[0] == 0


def test_the_base_port_of_the_environment_comes_first(health_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_HEALTH_BASE_PORT", str(health_port - 2))
    assert healthy("billing")[0] == 0


def test_a_port_where_nobody_listens_is_named(layout: Layout, port: int) -> None:
    stack_with(layout, port)
    code, said = healthy("billing", "--dir", str(layout.root))
    assert code == 1
    assert f"billing does not answer on 127.0.0.1:{port}" in said


def test_a_named_directory_without_a_stack_is_no_other_stack() -> None:
    done = CliRunner().invoke(app, ["billing"])
    assert isinstance(done.exception, NotRunning)
