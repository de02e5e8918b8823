"""What an `up` that died left: found, told by doctor, and stopped in order within the time that `down` promises."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hatchery_cli.commands.doctor import collect
from hatchery_cli.commands.down import app as down
from hatchery_cli.doctor.machine import check_ports
from hatchery_cli.embedded import leftovers
from hatchery_cli.embedded.downing import bring_down
from hatchery_cli.embedded.layout import Choices, Layout, Ports
from hatchery_cli.embedded.state import StateFile
from hatchery_cli.embedded.welcome import welcome
from typer.testing import CliRunner

TELLS_ITS_END = """
import signal, sys, time
def end(*_):
    time.sleep(0.1)
    print(sys.argv[1], file=open(sys.argv[2], "a"), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""
LISTENS = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def process(code: str, *words: str) -> Generator[int]:
    """A process with these words behind its code, once it has begun."""
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, start_new_session=True) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one.pid
        one.kill()


@pytest.fixture
def abandoned(layout: Layout, port: int) -> Layout:
    """The directory of a stack whose `up` was killed."""
    layout.root_key()
    layout.remember(Choices(port=port))
    StateFile(layout, Choices(port=port)).phase("ready")
    return layout


def test_services_then_machines_then_servers(abandoned: Layout, place: Path) -> None:
    ends, machine = str(place / "ends"), str(abandoned.machines / "ins_a")
    with (
        process(TELLS_ITS_END, "nats", ends, str(abandoned.nats / "nats.conf")) as server,
        process(TELLS_ITS_END, "machine", ends, "hatchery_controller", "--root", machine),
        process(TELLS_ITS_END, "services", ends, "hatchery_cli", "run", "--stack", str(abandoned.root)),
    ):
        (abandoned.nats / "nats.pid").write_text(str(server))
        began = time.monotonic()
        assert "stopped in" in bring_down(abandoned)
        assert time.monotonic() - began < 30
    assert Path(ends).read_text().split() == ["services", "machine", "nats"]


def test_doctor_says_abandoned_and_goes_on_with_the_stack(abandoned: Layout, port: int) -> None:
    words = (str(port), "hatchery_cli", "run", "--stack", str(abandoned.root))
    with process(LISTENS, *words) as service:
        assert leftovers.parts(abandoned) == [service]
        found = collect(abandoned.root)
    codes = [one.code for one in found]
    assert codes[0] == "abandoned"
    assert "hatchery up" in found[0].remedy
    assert "port_taken" not in codes
    assert "service_not_ready" in codes
    assert "part" not in codes


def test_doctor_asks_no_stack_of_which_nothing_is_left(abandoned: Layout) -> None:
    codes = [one.code for one in collect(abandoned.root)]
    assert codes[0] == "abandoned"
    assert "service_not_ready" not in codes


def test_a_port_that_a_stranger_holds_is_still_told(port: int) -> None:
    with process(LISTENS, str(port)) as pid:
        assert check_ports(Ports(port)).code == "port_taken"
        assert check_ports(Ports(port), [pid + 1]).code == "port_taken"
        assert check_ports(Ports(port), [pid]).code == "ports"


def test_down_where_nothing_was_ever_started(place: Path, layout: Layout) -> None:
    done = CliRunner().invoke(down, ["--dir", str(place / "mistyped")])
    assert done.exit_code == 3
    assert "no stack was ever started" in done.output
    layout.root_key()
    for _ in range(2):
        assert CliRunner().invoke(down, ["--dir", str(layout.root)]).exit_code == 0


def test_the_commands_that_up_prints_name_its_directory(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHERY_DIR", str(layout.root))
    text = welcome(layout, Choices(), 1.0, detached=True)
    assert f"./hatchery down --dir {layout.root}" in text
    assert f"--user you@example.com --dir {layout.root})" in text
