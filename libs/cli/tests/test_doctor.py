"""doctor: each check finds what it is for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hatchery_cli.doctor import machine
from hatchery_cli.doctor.stack import check_parts, check_services
from hatchery_cli.embedded.layout import Choices, Layout, Ports


def test_this_machine_can_run_it(layout: Layout) -> None:
    levels = {one.code: one.level for one in machine.check_machine(layout, running=True)}
    assert {levels[code] for code in ("python", "nats", "postgres", "node")} == {"ok"}
    assert levels["openclaw_missing"] == "warning"


def test_a_package_that_cannot_be_imported() -> None:
    found = machine.check_packages(["hatchery_common", "hatchery_nonsense"])
    assert (found.code, found.level) == ("python_broken", "error")
    assert "hatchery_nonsense" in found.text
    assert found.remedy


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = machine.check_ports(Ports(server.getsockname()[1]))
    assert found.code == "port_taken"
    assert "(api)" in found.text


def test_parts_that_are_down_or_restless() -> None:
    parts = {
        "nats": {"state": "restarting", "restarts": 1, "reason": "was killed by SIGKILL"},
        "services": {"state": "ready", "restarts": 7, "reason": "ended with exit code 1"},
        "postgres": {"state": "ready", "restarts": 0, "reason": None},
    }
    assert [one.code for one in check_parts(parts)] == ["part_down", "part_restarts", "part"]


@pytest.mark.parametrize(("processes", "log"), [(False, "logs/services.log"), (True, "logs/agent.log")])
async def test_a_silent_service_is_looked_for_in_the_log_it_writes(port: int, processes: bool, log: str) -> None:
    found = await check_services(Choices(port=port, processes=processes))
    agent = next(one for one in found if one.text.startswith("agent: "))
    assert (agent.code, agent.level) == ("service_not_ready", "error")
    assert agent.remedy is not None
    assert log in agent.remedy


def test_output_is_json_with_a_remedy_for_every_trouble(place: Path) -> None:
    command = [sys.executable, "-m", "hatchery_cli", "doctor", "--json", "--dir", str(place / "none")]
    body = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert all(one["remedy"] for one in body["findings"] if one["level"] != "ok")
