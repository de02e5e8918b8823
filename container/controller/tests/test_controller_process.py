"""The whole controller as a process over the script gateway: boot, what cannot start, what leaks and what stays behind."""

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from machine_under_test import HEADER, MODEL_TOKEN, TOKEN, Machine, alive, make_bundle, until


def test_up_to_ready_and_down(machine):
    machine.start()
    state = machine.wait_for("ready")
    assert state["machine_id"] == "mch_1"
    assert state["reason"] is None
    assert state["gateway"]["restarts"] == 0
    record = json.loads((machine.root / "controller.json").read_text())
    assert (record["pid"], record["port"]) == (machine.process.pid, machine.port)
    assert record["gateway_pid"] == state["gateway"]["pid"]
    assert record["started_at_ms"] > 0
    for path in ("controller.json", "state/openclaw.json", "logs/gateway.log"):
        assert stat.S_IMODE((machine.root / path).stat().st_mode) == 0o600
    assert machine.stop() == 0
    assert not alive(state["gateway"]["pid"])
    assert not (machine.root / "controller.json").exists()


def test_the_gateway_gets_a_minimal_environment_and_a_session_of_its_own(machine):
    machine.start(environment={"FAKE_READY_AFTER": "0"})
    state = machine.wait_for("ready")
    seen = machine.seen()
    secrets = (TOKEN, HEADER)
    assert not any(secret in json.dumps([seen["argv"], seen["environ"]]) for secret in secrets)
    assert [name for name, value in seen["environ"].items() if MODEL_TOKEN in value] == ["HATCHERY_LLM_KEY"]
    assert MODEL_TOKEN not in json.dumps(seen["argv"])
    assert not set(machine.tuning) & set(seen["environ"])
    assert seen["environ"]["HOME"] == str(machine.root / "home")
    assert seen["sid"] == state["gateway"]["pid"]
    assert seen["cwd"] == str(machine.root / "workspace")


def test_nothing_secret_on_our_own_command_line_or_in_our_environment(machine):
    machine.start()
    machine.wait_for("ready")
    for name in ("cmdline", "environ"):
        text = Path(f"/proc/{machine.process.pid}/{name}").read_text()
        assert not any(secret in text for secret in (TOKEN, MODEL_TOKEN, HEADER))


def test_logs_are_redacted_in_memory_and_on_disk(machine, tmp_path):
    (tmp_path / "say").write_text(f"leak {TOKEN} Bearer abcdefgh users-own-secret")
    machine.start(environment={"FAKE_CAT": str(tmp_path / "say"), "USERS_OWN": "users-own-secret"})
    machine.wait_for("ready")
    status, text = machine.call("GET", "/v1/logs?lines=100")
    assert status == 200
    for place in (text, (machine.root / "logs/gateway.log").read_text()):
        assert "leak [redacted] Bearer [redacted] [redacted]" in place
        assert "header is [redacted] key [redacted]" in place
    assert len(machine.call("GET", "/v1/logs?lines=1")[1].splitlines()) == 1


def test_the_log_file_is_bounded(machine):
    machine.start(
        environment={"FAKE_SAY": "\n".join(f"line {n} " + "." * 200 for n in range(400))}, tuning={"LOG_BYTES": "8192"}
    )
    machine.wait_for("ready")
    sizes = {path.name: path.stat().st_size for path in (machine.root / "logs").iterdir()}
    assert set(sizes) == {"gateway.log", "gateway.log.1", "gateway.log.2"}
    assert max(sizes.values()) <= 8192


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"gateway": {"node": "/nowhere/node"}}, "gateway_not_startable", "/nowhere/node"),
        ({"sealed": {"OPENAI_API_KEY": "cipher-text"}}, "sealed_environment_unreadable", "OPENAI_API_KEY"),
        ({"environment": {"NODE_OPTIONS": "--require=x"}}, "environment_reserved", "NODE_OPTIONS"),
        ({"gateway": {"port": 0}}, "boot_bundle_invalid", "gateway.port"),
    ],
)
def test_what_cannot_start_says_why(machine, changes, reason, said):
    machine.start(**changes)
    state = machine.wait_for("failed")
    assert state["reason"] == reason
    assert said in state["message"]
    assert "cipher-text" not in state["message"]
    assert not (machine.root / "state/seen.json").exists()
    assert machine.stop() == 0


def test_an_unwritable_directory_is_named(machine):
    machine.root.mkdir()
    (machine.root / "state").symlink_to("/tmp")
    machine.start()
    assert machine.wait_for("failed")["reason"] == "storage_unwritable"


def test_a_planted_link_is_replaced_not_followed(machine, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (machine.root / "state").mkdir(parents=True)
    (machine.root / "state/openclaw.json").symlink_to(victim)
    machine.start()
    machine.wait_for("ready")
    assert victim.read_text() == "untouched"
    assert not (machine.root / "state/openclaw.json").is_symlink()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"service_token": 1}', json.dumps(make_bundle(service_token="x")).encode()]
)
def test_without_a_token_in_the_bundle_it_ends(machine, raw):
    machine.start(raw=raw)
    assert machine.process.wait(5) == 65
    assert "bundle" in machine.errors()


def test_a_bundle_that_never_comes(machine):
    machine.start(raw=False)
    machine.wait_open()  # its port is open before anything else
    assert machine.call("GET", "/v1/state")[0] == 401
    assert machine.process.wait(5) == 65
    os.close(machine.pipe)


def test_stop_while_waiting_for_the_bundle(machine):
    machine.start(raw=False, tuning={"BOOT_DEADLINE_S": "30"})
    machine.wait_open()
    assert machine.stop(5) == 0
    os.close(machine.pipe)


def test_the_boot_file_is_read_and_gone(machine, tmp_path):
    boot = tmp_path / "boot.json"
    boot.write_text(json.dumps(make_bundle(machine.gateway_port)))
    boot.chmod(0o400)
    machine.start(boot_file=boot)
    machine.wait_for("ready")
    assert not boot.exists()


def test_an_open_boot_file_is_refused_and_gone(machine, tmp_path):
    boot = tmp_path / "boot.json"
    boot.write_text(json.dumps(make_bundle(machine.gateway_port)))
    boot.chmod(0o644)
    machine.start(boot_file=boot)
    assert machine.process.wait(5) == 65
    assert not boot.exists()


def test_overrides_that_were_refused_are_shown(machine):
    machine.start(overrides={"gateway": {"auth": {"mode": "none"}}, "channels": {"telegram": {"enabled": False}}})
    state = machine.wait_for("ready")
    assert state["ignored_overrides"] == ["gateway.auth"]
    config = json.loads((machine.root / "state/openclaw.json").read_text())
    assert config["gateway"]["auth"]["mode"] == "trusted-proxy"
    assert config["channels"]["telegram"]["enabled"] is False


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run the gateway as another user")
def test_only_the_gateway_drops_to_another_user(tmp_path):
    nobody = pwd.getpwnam("nobody")
    base = Path(tempfile.mkdtemp(dir="/var/tmp"))  # pytest's own directories are closed to others
    base.chmod(0o711)
    (base / "in").mkdir(mode=0o711)
    # A stand-in for node that this user can run wherever our Python lives.
    program = base / "program.sh"
    program.write_text(
        "#!/bin/sh\nid -u > $OPENCLAW_STATE_DIR/uid; id -G > $OPENCLAW_STATE_DIR/groups; exec sleep 300\n"
    )
    program.chmod(0o755)
    machine = Machine(base / "in" / "machine")
    try:
        machine.start(gateway={"node": "/bin/sh", "openclaw": str(program), "uid": nobody.pw_uid, "gid": nobody.pw_gid})
        until(lambda: (machine.root / "state/groups").exists() and (machine.root / "state/groups").read_text())
        assert (machine.root / "state/uid").read_text().split() == [str(nobody.pw_uid)]
        assert (machine.root / "state/groups").read_text().split() == [str(nobody.pw_gid)]
        config = (machine.root / "state/openclaw.json").stat()
        assert (config.st_uid, stat.S_IMODE(config.st_mode)) == (nobody.pw_uid, 0o600)
        assert (machine.root / "logs").stat().st_uid == 0
        assert machine.stop() == 0
    finally:
        machine.close()
        shutil.rmtree(base)


def test_memory_stays_under_40_mib(machine):
    machine.start()
    machine.wait_for("ready")
    machine.call("GET", "/v1/logs")
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    line = next(text for text in status.splitlines() if text.startswith("VmHWM"))
    assert int(line.split()[1]) < 40 * 1024


def test_a_neighbour_whose_name_is_no_text_harms_nobody(machine):
    """It is among the processes that are looked at when a gateway ends."""
    name = (
        r'import ctypes, sys; ctypes.CDLL(None).prctl(15, b"\xff\xfe", 0, 0, 0); print(1, flush=True); sys.stdin.read()'
    )
    neighbour = subprocess.Popen([sys.executable, "-c", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert neighbour.stdout.readline() == b"1\n"
        machine.start()
        first = machine.wait_for("ready")["gateway"]["pid"]
        os.kill(first, signal.SIGKILL)
        until(lambda: machine.state()["gateway"]["restarts"] == 1)
        assert machine.stop() == 0
    finally:
        neighbour.communicate(timeout=10)
