"""What `up` is told is checked before anything starts, and what was kept is read by whatever version comes next."""

from __future__ import annotations

import json

import pytest
from hatchery_cli.commands.status import app as status
from hatchery_cli.commands.up import app as up
from hatchery_cli.embedded.layout import Choices, Layout, Ports
from hatchery_cli.embedded.port_range import LAST_PORT
from hatchery_cli.embedded.state import StateFile
from hatchery_cli.errors import DatabaseRefused
from typer.testing import CliRunner


@pytest.mark.parametrize("port", [0, -1, LAST_PORT + 1, 99999])
def test_a_port_without_room_for_the_stack_is_refused_and_not_kept(layout: Layout, port: int) -> None:
    done = CliRunner().invoke(up, ["--dir", str(layout.root), "--port", str(port)])
    assert done.exit_code == 2
    assert "--port" in done.output
    assert not layout.choices_file.exists()
    assert not layout.attempt_file.exists()


def test_the_last_port_leaves_room_for_all() -> None:
    assert Ports(LAST_PORT).gateways[1] + 100 == 65535


@pytest.mark.parametrize("url", ["nonsense", "mysql://boss:secret@db/hatchery", "postgresql://boss:secret@db:port/x"])
def test_what_is_no_url_of_postgres_is_refused_at_once_and_not_kept(layout: Layout, url: str) -> None:
    done = CliRunner().invoke(up, ["--dir", str(layout.root), "--database-url", url])
    assert isinstance(done.exception, DatabaseRefused)
    assert "--database-url" in (done.exception.hint or "")
    assert "secret" not in done.exception.message
    assert not layout.choices_file.exists()
    assert not layout.attempt_file.exists()


def test_choices_of_a_newer_version_are_read_as_far_as_they_are_known(layout: Layout) -> None:
    layout.choices_file.write_text(json.dumps({"port": 9100, "of_tomorrow": True}))
    assert layout.remembered() == Choices(port=9100)
    layout.attempt_file.write_text(json.dumps({"port": 9400, "of_tomorrow": True}))
    assert layout.choices() == Choices(port=9400)


def test_a_failure_without_a_remedy_is_shown_without_one(layout: Layout) -> None:
    StateFile(layout, Choices()).phase("failed", {"code": "internal", "message": "something broke", "hint": None})
    done = CliRunner().invoke(status, ["--dir", str(layout.root)])
    assert "error[internal]: something broke" in done.output
    assert "None" not in done.output
