"""A real controller process over the script gateway, driven as the process driver drives it."""

import json
import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from hatchery_common.testing.ports import free_port

SCRIPT = Path(__file__).with_name("script_gateway.py")
TOKEN = "controller-service-token-0123456789"
MODEL_TOKEN = "model-token-abcdefghijklmnop-42"
HEADER = "x-hatchery-" + "0a1b2c3d" * 4
FAST = {
    "PROBE_STARTING_S": "0.03", "PROBE_STEADY_S": "0.05", "PROBE_TIMEOUT_S": "1", "BACKOFF_FIRST_S": "0.1",
    "BACKOFF_LONGEST_S": "0.4", "LIVE_DEADLINE_S": "10", "READY_DEADLINE_S": "10", "BOOT_DEADLINE_S": "1",
}  # fmt: skip


def make_bundle(gateway_port=1, *, environment=None, gateway=None, **changes):
    spec = {
        "port": gateway_port, "bind": "loopback", "node": sys.executable, "openclaw": str(SCRIPT), "uid": None, "gid": None,
        "user_header": HEADER, "required_headers": ["x-forwarded-proto"], "trusted_proxies": ["127.0.0.1"],
        "allow_loopback": True, "owner": "owner@mch_1", "service": "svc@mch_1", "allowed_origins": [],
    }  # fmt: skip
    model = {
        "base_url": "http://127.0.0.1:9/llm/v1",
        "token": MODEL_TOKEN,
        "id": "demo",
        "context_window": 1000,
        "max_tokens": 100,
    }
    bundle = {
        "machine_id": "mch_1",
        "service_token": TOKEN,
        "gateway": spec | (gateway or {}),
        "model": model,
        "overrides": {},
        "environment": environment or {},
        "sealed": None,
    }
    return bundle | changes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


class Machine:
    def __init__(self, root):
        self.root = Path(root)
        self.port = free_port()
        self.gateway_port = free_port()
        self.process = None

    def start(self, *, raw=None, boot_file=None, tuning=None, **bundle):
        raw = json.dumps(make_bundle(self.gateway_port, **bundle)).encode() if raw is None else raw
        self.tuning = {f"HATCHERY_CONTROLLER_{k}": v for k, v in (FAST | (tuning or {})).items()}
        command = [sys.executable, "-m", "hatchery_controller", "--port", str(self.port), "--root", str(self.root)]
        environ = {**os.environ, **self.tuning}
        if boot_file is not None:
            command += ["--boot-file", str(boot_file)]
            self._spawn(command, environ, ())
            return self
        reading, writing = os.pipe()
        self._spawn([*command, "--boot-fd", str(reading)], environ, (reading,))
        os.close(reading)
        if raw is not False:
            try:
                os.write(writing, raw)
            except BrokenPipeError:
                pass
            os.close(writing)
        else:
            self.pipe = writing
        return self

    def _spawn(self, command, environ, descriptors):
        with (self.root.parent / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                env=environ,
                pass_fds=descriptors,
                start_new_session=True,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )

    def errors(self):
        return (self.root.parent / "stderr").read_text()

    def call(self, method, path, body=None, *, token=TOKEN, headers=None):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            sent = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request(method, path, body=body, headers=sent | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def state(self, query=""):
        status, body = self.call("GET", f"/v1/state{query}")
        assert status == 200, body
        return json.loads(body)

    def wait_for(self, phase, seconds=15.0, **wanted):
        deadline, revision, seen = time.monotonic() + seconds, 0, None
        self.wait_open()
        while time.monotonic() < deadline:
            seen = self.state(f"?wait=2&since={revision}")
            if seen["phase"] == phase and all(seen[key] == value for key, value in wanted.items()):
                return seen
            revision = seen["revision"]
        raise AssertionError(f"never {phase}: {seen}\n{self.call('GET', '/v1/logs')[1]}")

    def wait_open(self):
        def answers():
            try:
                return self.call("GET", "/healthz", token=None)[0] == 200
            except OSError:
                assert self.process.poll() is None, self.errors()
                return False

        until(answers)

    def seen(self):
        return json.loads((self.root / "state/seen.json").read_text())

    def stop(self, seconds=15.0):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        try:
            record = json.loads((self.root / "controller.json").read_text())
            os.killpg(record["gateway_pid"], signal.SIGKILL)
        except (OSError, ValueError, KeyError, TypeError):
            pass
