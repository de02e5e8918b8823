"""The life of a gateway under a real controller process: crashes, restarts, stops, other processes in its place."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection

import pytest
from machine_under_test import HEADER, TOKEN, Machine, alive, until


def test_exit_78_is_final_until_somebody_asks(machine):
    machine.start(environment={"FAKE_EXIT": "78"})
    state = machine.wait_for("failed")
    assert state["reason"] == "config_rejected"
    assert "Invalid config at gateway: unknown key colour" in state["message"]
    assert HEADER not in state["message"]
    assert state["gateway"]["exit_code"] == 78
    time.sleep(0.5)
    assert machine.state()["gateway"]["restarts"] == 0
    assert machine.call("POST", "/v1/gateway/restart", json.dumps({"reason": "again"}))[0] == 202
    machine.wait_for("failed", reason="config_rejected")
    assert machine.state()["gateway"]["restarts"] == 1
    assert machine.stop() == 0


def test_a_crash_loop_backs_off_and_says_so(machine):
    machine.start(environment={"FAKE_EXIT": "3"})
    state = machine.wait_for("degraded", reason="crash_loop")
    assert state["message"] == "the gateway ended with status 3: Invalid config at gateway: unknown key colour"
    assert state["gateway"]["exit_code"] == 3
    assert machine.stop() == 0


def test_a_killed_gateway_comes_back_and_leaves_nothing(machine):
    machine.start(environment={"FAKE_CHILD": "1"})
    first = machine.wait_for("ready")["gateway"]["pid"]
    children = json.loads((machine.root / "state/children.json").read_text())
    assert all(alive(pid) for pid in children)
    os.kill(first, signal.SIGKILL)
    until(lambda: machine.state()["gateway"]["restarts"] == 1)
    assert not any(alive(pid) for pid in [first, *children])
    again = machine.wait_for("ready")
    assert again["gateway"]["pid"] != first
    assert machine.stop() == 0
    assert not any(alive(pid) for pid in json.loads((machine.root / "state/children.json").read_text()))


@pytest.mark.parametrize(
    ("knob", "tuning", "reason"),
    [
        ({"FAKE_READY_AFTER": "999"}, {"READY_DEADLINE_S": "0.5"}, "gateway_never_ready"),
        ({"FAKE_LISTEN_AFTER": "999"}, {"LIVE_DEADLINE_S": "0.5"}, "gateway_never_live"),
    ],
)
def test_never_up(machine, knob, tuning, reason):
    machine.start(environment=knob, tuning=tuning)
    state = machine.wait_for("failed")
    assert state["reason"] == reason
    assert state["message"].startswith("the gateway did not ")
    assert "\n" not in state["message"]
    assert state["gateway"]["pid"] is None
    assert not alive(json.loads((machine.root / "controller.json").read_text())["gateway_pid"])


def test_degraded_and_back(machine):
    machine.start()
    machine.wait_for("ready")
    sulk = machine.root / "state/sulk"
    sulk.touch()
    state = machine.wait_for("degraded")
    assert (state["reason"], state["gateway"]["restarts"]) == ("gateway_not_ready", 0)
    assert "sidecars" in state["message"]
    sulk.unlink()
    machine.wait_for("ready")


def test_a_hung_gateway_is_ended_and_started_again(machine):
    machine.start(tuning={"PROBE_TIMEOUT_S": "0.2", "RESPONSIVE_DEADLINE_S": "1"})
    pid = machine.wait_for("ready")["gateway"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    machine.wait_for("degraded", reason="gateway_unresponsive")
    until(lambda: machine.state()["gateway"]["restarts"] == 1, 15)
    assert machine.wait_for("ready")["gateway"]["pid"] != pid


def test_restart_on_wish(machine):
    machine.start()
    first = machine.wait_for("ready")
    assert machine.call("POST", "/v1/gateway/restart", '{"reason": "new settings"}')[0] == 202
    until(lambda: machine.state()["gateway"]["restarts"] == 1)
    again = machine.wait_for("ready")
    assert again["gateway"]["pid"] != first["gateway"]["pid"]
    assert "new settings" in machine.call("GET", "/v1/logs")[1]


def test_stop_kills_a_deaf_gateway_at_the_deadline(machine):
    machine.start(environment={"FAKE_DEAF": "1", "FAKE_CHILD": "1"})
    pid = machine.wait_for("ready")["gateway"]["pid"]
    children = json.loads((machine.root / "state/children.json").read_text())
    start = time.monotonic()
    assert machine.call("POST", "/v1/stop", '{"deadline_s": 1}')[0] == 202
    assert machine.state()["phase"] == "stopping"
    assert machine.call("POST", "/v1/gateway/restart")[0] == 409
    assert machine.process.wait(10) == 0
    assert 0.9 <= time.monotonic() - start < 4
    assert not any(alive(p) for p in [pid, *children])


def test_a_second_stop_can_only_hurry(machine):
    machine.start(environment={"FAKE_DEAF": "1"})
    machine.wait_for("ready")
    machine.call("POST", "/v1/stop", '{"deadline_s": 60}')
    time.sleep(0.2)
    machine.call("POST", "/v1/stop", '{"deadline_s": 0}')
    assert machine.process.wait(5) == 0


def test_a_waiting_reader_learns_of_the_end(machine):
    machine.start()
    revision = machine.wait_for("ready")["revision"]
    connection = HTTPConnection("127.0.0.1", machine.port, timeout=20)
    connection.request("GET", f"/v1/state?wait=30&since={revision}", headers={"Authorization": f"Bearer {TOKEN}"})
    machine.process.send_signal(signal.SIGTERM)
    assert json.loads(connection.getresponse().read())["phase"] in ("stopping", "stopped")
    connection.close()
    assert machine.process.wait(10) == 0


def test_stop_during_back_off_and_when_failed(machine):
    machine.start(environment={"FAKE_EXIT": "3"}, tuning={"BACKOFF_FIRST_S": "60", "BACKOFF_LONGEST_S": "60"})
    machine.wait_for("degraded")
    assert machine.stop(5) == 0


def test_it_outlives_its_starter_and_a_hang_up(machine):
    machine.start()
    machine.wait_for("ready")
    machine.process.send_signal(signal.SIGHUP)
    assert machine.state()["phase"] == "ready"


def test_a_dead_controllers_gateway_is_ended_by_the_next(machine):
    machine.start(environment={"FAKE_CHILD": "1"})
    orphan = machine.wait_for("ready")["gateway"]["pid"]
    machine.process.kill()
    machine.process.wait(5)
    assert alive(orphan)
    machine.start()
    assert machine.wait_for("ready")["gateway"]["pid"] != orphan
    assert not alive(orphan)


def test_a_pid_that_became_somebody_else_is_left_alone(machine):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as stranger:
        try:
            machine.root.mkdir()
            record = {"gateway_pid": stranger.pid, "gateway_started_ticks": 1}
            (machine.root / "controller.json").write_text(json.dumps(record))
            machine.start()
            machine.wait_for("ready")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_one_directory_has_one_controller(machine):
    machine.start()
    machine.wait_for("ready")
    rival = Machine(machine.root)
    rival.start()
    assert rival.process.wait(5) == 73
    assert machine.state()["phase"] == "ready"


def test_own_port_taken(machine):
    with socket.create_server(("127.0.0.1", machine.port)):
        machine.start()
        assert machine.process.wait(5) == 69
    assert str(machine.port) in machine.errors()


def test_gateway_port_taken(machine):
    with socket.create_server(("127.0.0.1", machine.gateway_port)):
        machine.start()
        state = machine.wait_for("failed")
    assert state["reason"] == "gateway_port_taken"
    machine.call("POST", "/v1/gateway/restart")
    machine.wait_for("ready")
