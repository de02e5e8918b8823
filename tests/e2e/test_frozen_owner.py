"""A service's owner is frozen for longer than its lease: a standby takes over, and what the owner writes on waking is refused."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from whole_stack import WholeStack, eventually, whole_stack


@contextmanager
def standby(stack: WholeStack, service: str) -> Generator[subprocess.Popen[bytes]]:
    """A second replica of one service, with a health listener of its own."""
    environment = stack.environment | {"HATCHERY_HEALTH_BASE_PORT": str(stack.port + 40)}
    command = [*stack.command("run", service)[:-2], "--stack", str(stack.directory)]
    log = (stack.directory / "logs" / f"standby-{service}.log").open("wb")
    with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def log_of(stack: WholeStack, name: str) -> str:
    return (stack.directory / "logs" / f"{name}.log").read_text()


def pid_of(stack: WholeStack, part: str) -> int:
    """The process that serves this part now."""
    return int(stack.status()["parts"][part]["pid"])


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_standby_takes_over_and_the_old_owner_learns_of_it() -> None:
    with whole_stack("five") as stack:
        stack.up()
        site = stack.visitor("frozen@example.com")
        site.wish("provision")
        with standby(stack, "provisioner"):
            eventually(lambda: '"service.ready"' in log_of(stack, "standby-provisioner"), 60)
            assert "owner.elected" not in log_of(stack, "standby-provisioner")
            owner = pid_of(stack, "provisioner")
            os.kill(owner, signal.SIGSTOP)
            try:
                accepted = site.post("/api/openclaw/instance/restart")
                eventually(lambda: "owner.elected" in log_of(stack, "standby-provisioner"), 60)
            finally:
                os.kill(owner, signal.SIGCONT)
            events = [one.event for one in site.settled(accepted["operation"]["operation_id"])]
            assert [one for one in events if one in ("finished", "failed", "superseded")] == ["finished"]
            eventually(lambda: "owner.lost" in log_of(stack, "provisioner"), 60)
            assert site.instance()["status"] == "ready"
            machines = [line for line in stack.processes() if "hatchery_controller" in line]
            assert len(machines) == 1, machines
        site.wish("delete")
        assert stack.json("billing", "verify")["ok"]
