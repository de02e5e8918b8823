"""A whole stack with real servers, all five services and a protocol-faithful gateway: up, crash, resume, down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hatchery_common.testing.ports import free_port, give_back

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
USER = "somebody@example.com"
PORTS = 300  # what a stack may use, from its base port


class Stack:
    """Drives one data directory through the command line, as an operator would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port(span=PORTS)
        gateway = find_spec("hatchery_common.testing.fake_gateway")
        assert gateway is not None
        assert gateway.origin is not None
        self.environment = {
            **os.environ,
            "HATCHERY_PROVISIONER_NODE": sys.executable,
            "HATCHERY_PROVISIONER_OPENCLAW": str(Path(gateway.origin).with_name("__main__.py")),
            "HATCHERY_PROVISIONER_SEPARATE_USERS": "false",
        }

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hatchery_cli", *words, "--dir", str(self.directory)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=150, check=False)

    def up(self) -> None:
        done = self("up", "--detach", "--port", str(self.port))
        assert done.returncode == 0, done.stdout + done.stderr + self.log()
        assert "Hatchery is ready" in done.stdout

    def status(self) -> dict[str, Any]:
        return json.loads(self("status", "--json").stdout)

    def pid(self, part: str) -> int:
        return int(self.status()["parts"][part]["pid"])

    def call(self, method: str, path: str, token: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]

    def log(self) -> str:
        path = self.directory / "logs/services.log"
        return path.read_text()[-4000:] if path.exists() else ""


@pytest.fixture
def stack(place: Path) -> Generator[Stack]:
    made = Stack(place / "stack")
    yield made
    made("down")
    left = [line for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
            if str(made.directory) in line]  # fmt: skip
    assert left == []
    give_back(made.port, span=PORTS)


def eventually(check: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_a_stack_lives_crashes_and_resumes_with_its_machine(stack: Stack) -> None:
    stack.up()
    assert stack.status()["phase"] == "ready"
    again = stack("up")
    assert again.returncode == 1
    assert "already_running" in again.stderr

    token = stack("token", "create", "--user", USER).stdout.strip()
    stack.call("POST", "/api/openclaw/instance", token)

    def is_ready() -> bool:
        return stack.call("GET", "/api/openclaw/instance", token)["status"] == "ready"

    eventually(is_ready)
    assert stack.status()["machines"]["running"] == 1

    os.kill(stack.pid("services"), signal.SIGKILL)
    os.kill(stack.pid("nats"), signal.SIGKILL)
    os.kill(stack.pid("postgres"), signal.SIGKILL)
    eventually(lambda: all(part["restarts"] for part in stack.status()["parts"].values()))
    eventually(lambda: stack.status()["phase"] == "ready")
    findings = json.loads(stack("doctor", "--json").stdout)
    assert findings["ok"], findings

    os.kill(stack.status()["pid"], signal.SIGKILL)
    eventually(lambda: stack.status()["phase"] == "abandoned")
    codes = {one["code"] for one in json.loads(stack("doctor", "--json").stdout)["findings"]}
    assert {"abandoned", "service", "schema"} <= codes
    assert not codes & {"port_taken", "service_not_ready", "part"}
    stack.up()
    eventually(is_ready)
    assert stack.status()["machines"]["running"] == 1

    began = time.monotonic()
    assert stack("down").returncode == 0
    assert time.monotonic() - began < 30
    assert stack.status()["phase"] == "stopped"
    assert stack.status()["machines"]["running"] == 0
    stack.up()
    eventually(is_ready)


def test_ctrl_c_stops_everything_in_order(stack: Stack) -> None:
    stack.up()  # so that the second start is warm
    stack("down")
    command = [sys.executable, "-m", "hatchery_cli", "up", "--dir", str(stack.directory)]
    with subprocess.Popen(command, env=stack.environment, stdout=subprocess.PIPE, text=True) as running:
        eventually(lambda: stack.status()["phase"] == "ready")
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
    assert running.returncode == 0
    assert "stopping: services, machines, servers" in output
    assert stack.status()["phase"] == "stopped"


def test_a_taken_port_is_named_by_a_detached_start(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.port)):
        done = stack("up", "--detach", "--port", str(stack.port))
    assert done.returncode == 1
    assert f"error[port_taken]: port {stack.port} (api) is in use" in done.stderr
    assert "--port" in done.stderr
    assert stack.status()["error"]["code"] == "port_taken"


def test_what_never_got_ready_is_not_remembered(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.port)):
        done = stack("up", "--detach", "--port", str(stack.port), "--nats-url", "nats://nowhere.invalid:4222")
    assert done.returncode == 1
    assert not (stack.directory / "choices.json").exists()
    assert not (stack.directory / "run/choices.json").exists()
    stack.up()
    assert json.loads((stack.directory / "choices.json").read_text())["nats_url"] is None
