"""What keeps a stack from being prepared is told, by a code and a remedy where we know one, else by its traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hatchery_cli.embedded.layout import Choices, Layout
from hatchery_common.testing.postgres import PostgresServer

NOWHERE = "nats://127.0.0.1:1"


def hatchery(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchery_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wrong(server: PostgresServer, what: str) -> str:
    """The server's URL with something wrong in it."""
    parts = urlsplit(server.url)
    if what == "password":
        user = parts.netloc.partition(":")[0]
        return parts._replace(netloc=f"{user}:wrong@{parts.netloc.rpartition('@')[2]}").geturl()
    return parts._replace(path="/nosuchdatabase").geturl()


@pytest.mark.parametrize("what", ["password", "database"])
def test_a_refused_login_is_told_to_who_starts_and_to_who_migrates(
    layout: Layout, postgres: PostgresServer, what: str
) -> None:
    url = wrong(postgres, what)
    layout.root_key()
    layout.remember(Choices(database_url=url, nats_url=NOWHERE))
    started = hatchery("run", "--prepare", "--stack", str(layout.root))
    assert started.returncode == 1
    assert "error[database_refused]" in started.stderr
    assert "HATCHERY_ADMIN_DATABASE_URL" in started.stderr
    assert "Traceback" not in started.stderr

    migrated = hatchery("db", "migrate", "--json", "--database-url", url, "--dir", str(layout.root))
    assert migrated.returncode == 1
    assert json.loads(migrated.stdout)["error"]["code"] == "database_refused"
    assert "wrong" not in migrated.stdout


def test_what_nobody_foresaw_is_told_with_its_traceback(layout: Layout) -> None:
    layout.root_key()
    layout.remember(Choices(database_url="postgresql://boss@127.0.0.1:1/none", nats_url=NOWHERE))
    layout.secrets.rmdir()
    Path(layout.secrets).write_text("a file where a directory was")
    started = hatchery("run", "--prepare", "--stack", str(layout.root))
    assert started.returncode == 1
    assert "Traceback" in started.stderr
    assert "error[prepare_failed]: the database or the bus could not be prepared: NotADirectoryError" in started.stderr


@pytest.mark.parametrize(
    "url", ["postgresql://boss@127.0.0.1:1/none?sslmode=nonsense", "mysql://boss@127.0.0.1:1/none"]
)
def test_what_no_driver_can_read_is_told_at_once(layout: Layout, url: str) -> None:
    layout.root_key()
    layout.remember(Choices(database_url=url, nats_url=NOWHERE))
    migrated = hatchery("db", "migrate", "--json", "--database-url", url, "--dir", str(layout.root))
    assert migrated.returncode == 1
    error = json.loads(migrated.stdout)["error"]
    assert error["code"] == "database_refused"
    assert "--database-url" in error["hint"]
    started = hatchery("run", "--prepare", "--stack", str(layout.root))
    assert "error[database_refused]" in started.stderr
