"""The demo when it goes wrong: nothing of it runs on, and its last line is the object all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from hatchery_cli.demo.website import DemoFailed, Website
from hatchery_common.testing.ports import free_port

COMMAND = [sys.executable, "-m", "hatchery_cli", "demo", "--json"]


def running(place: Path) -> list[str]:
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(place) in line]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["early", "late"])
def test_an_interrupted_demo_leaves_nothing(how: signal.Signals, moment: str, place: Path) -> None:
    """Early: when the detached stack was just begun; late: when its services are on their way."""
    environment = {**os.environ, "HATCHERY_PROVISIONER_OPENCLAW": "/nowhere/openclaw.mjs", "TMPDIR": str(place)}
    sign = " up --dir " if moment == "early" else " run --prepare "
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        end = time.monotonic() + 60
        while not any(sign in line for line in running(place)):
            assert time.monotonic() < end
            time.sleep(0.02)
        demo.send_signal(how)
        output, errors = demo.communicate(timeout=90)
    assert demo.returncode == 1
    assert json.loads(output.splitlines()[-1]) == {"ok": False, "error": "interrupted"}
    assert running(place) == [], errors
    assert list(place.glob("hatchery-demo-*")) == []


def test_whatever_goes_wrong_ends_in_the_object(place: Path) -> None:
    (place / "file").write_text("")
    environment = {**os.environ, "HATCHERY_CACHE": str(place / "file")}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is False
    code = "import sys, tempfile; tempfile.tempdir = '/nowhere'; from hatchery_cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code, "demo", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["error"].startswith("FileNotFoundError")


@contextmanager
def events(pause: float, text: bytes) -> Generator[str]:
    """A server whose stream of events sends this text for ever, with a pause after each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(text)
                    self.wfile.flush()
                    time.sleep(pause)
            except OSError:
                pass

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("pause", "text"), [(0.05, b": alive\n\n"), (5.0, b": alive\n\n")])
def test_a_stream_without_events_ends_at_the_deadline(pause: float, text: bytes) -> None:
    with events(pause, text) as url, Website(url, "token") as site:
        began = time.monotonic()
        with pytest.raises(DemoFailed, match="did not come to an end"):
            list(site.follow("/events", 0.4))
        assert time.monotonic() - began < 3
