"""The demo on the real gateway."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from whole_stack import outside


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_ends_well_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "hatchery_cli", "demo", "--json"]
    done = subprocess.run(command, env=outside(), capture_output=True, text=True, timeout=880, check=False)
    assert done.stdout.strip(), done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"], f"{result}\n{done.stderr[-3000:]}"
    assert done.returncode == 0
    assert result["left_over"] == {"processes": [], "directories": []}
    assert result["chat"]["chunks"] >= 1
    assert "demo" in result["chat"]["text"]
    assert "step_finished wait_ready" in result["events"]
    assert result["ledger"]["txns"] >= 3
    wanted = {"stack_up", "accepted", "ready", "first_token", "second_turn_first_token", "restart_ready", "delete"}
    assert wanted <= set(result["timings_ms"])
