"""Stopping machines: controllers are asked first, gateways left behind go with them, neighbours stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hatchery_cli.embedded.machines import controllers, gateways, stop_machines
from hatchery_cli.embedded.processes import wait_gone

CONTROLLER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
time.sleep(60)
"""
DEAF = CONTROLLER.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


class Machines:
    """Starts processes that look like controllers and gateways, and ends all of them."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, root: Path, *, code: str = CONTROLLER, gateway: bool = False) -> int:
        words = [] if gateway else ["hatchery_controller", "--root", str(root)]
        environment = {**os.environ, "OPENCLAW_STATE_DIR": str(root / "state")} if gateway else None
        child = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        self.children.append(child)
        return child.pid

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.fixture
def machines() -> Generator[Machines]:
    made = Machines()
    yield made
    made.end()


def test_only_our_own_are_found_and_stopped(place: Path, machines: Machines) -> None:
    ours = machines.start(place / "machines" / "ins_a")
    neighbour = machines.start(place / "machines-of-another" / "ins_a")
    assert controllers(place / "machines") == [ours]
    assert stop_machines(place / "machines", 5) == []
    assert controllers(place / "machines") == []
    assert wait_gone([neighbour], 0.1) == [neighbour]


def test_a_deaf_controller_is_killed_at_the_deadline(place: Path, machines: Machines) -> None:
    deaf = machines.start(place / "ins_a", code=DEAF)
    assert stop_machines(place, 0.3) == [deaf]
    assert controllers(place) == []


def test_a_gateway_without_its_controller_is_ended(place: Path, machines: Machines) -> None:
    left = machines.start(place / "ins_a", gateway=True)
    assert gateways(place) == [left]
    stop_machines(place, 1)
    assert gateways(place) == []
