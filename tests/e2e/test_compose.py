"""docker-compose.yml: the image builds, and NATS, Postgres and the five services become healthy."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from whole_stack import eventually

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "hatchery-test"


def engine_answers() -> bool:
    """Whether a Docker engine and docker-compose are here."""
    if not (shutil.which("docker") and shutil.which("docker-compose")):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0


def compose(checkout: Path, *words: str, check: bool = True) -> str:
    command = ["docker-compose", "-p", PROJECT, *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Generator[Path]:
    """A clone with its secrets rendered; the containers are removed at the end."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True, timeout=60)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    script = (clone / "container/render-secrets.sh").read_text().replace("./hatchery", str(ROOT / ".venv/bin/hatchery"))
    (clone / "container/render-secrets.sh").write_text(script)
    subprocess.run(["sh", "container/render-secrets.sh"], cwd=clone, check=True, timeout=60, capture_output=True)
    (clone / ".venv").unlink()
    yield clone
    compose(clone, "down", "-v", check=False)


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not engine_answers(), reason="no Docker engine with docker-compose answers here")
def test_the_composed_stack_becomes_healthy(checkout: Path) -> None:
    _build(checkout, "hatchery-service", "container/Dockerfile.service", ".")
    _build(checkout, "hatchery-nats", "container/Dockerfile.nats", "container")
    compose(checkout, "up", "-d")
    wanted = {"nats", "postgres", "api", "provisioner", "billing", "agent", "runtime-proxy"}
    eventually(lambda: all(_health(checkout, name) == "healthy" for name in wanted), 180, every=2)
    assert {name for name in wanted if _ports(checkout, name)} == {"api", "runtime-proxy"}
    for name in ("api", "billing"):
        seen = _docker("inspect", _container(checkout, name))
        for line in (checkout / "secrets" / f"{name}.env").read_text().splitlines():
            assert line.partition("=")[2] not in seen, "a secret shows in the container's inspection"

    compose(checkout, "stop", "nats")
    damage = "for file in $(find /data -name meta.inf -path '*/EVT/*'); do echo damaged > $file; done"
    mounted = f"{PROJECT}_nats:/data"
    _docker("run", "--rm", "-u", "0", "-v", mounted, "--entrypoint", "sh", "hatchery-service", "-c", damage)
    compose(checkout, "start", "nats")
    eventually(lambda: _last_probe(checkout, "nats")["ExitCode"] != 0, 60, every=1)
    assert "503" in _last_probe(checkout, "nats")["Output"]


def _build(checkout: Path, image: str, dockerfile: str, context: str) -> None:
    command = ["docker", "build", "-q", "--network", "host", "-t", image, "-f", dockerfile, context]
    subprocess.run(command, cwd=checkout, check=True, timeout=800, capture_output=True)


def _docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _container(checkout: Path, service: str) -> str:
    return compose(checkout, "ps", "-q", service).strip()


def _state(checkout: Path, service: str) -> dict[str, Any]:
    return json.loads(_docker("inspect", "-f", "{{json .State}}", _container(checkout, service)))


def _health(checkout: Path, service: str) -> str:
    return _state(checkout, service)["Health"]["Status"]


def _last_probe(checkout: Path, service: str) -> dict[str, Any]:
    """The newest run of the health check since the container started; one that never ran went well."""
    state = _state(checkout, service)
    began = datetime.fromisoformat(state["StartedAt"])  # in UTC, where the log may have the zone of the engine's host
    ran = [one for one in state["Health"]["Log"] or () if datetime.fromisoformat(one["Start"]) > began]
    return ran[-1] if ran else {"ExitCode": 0, "Output": ""}


def _ports(checkout: Path, service: str) -> bool:
    return "HostPort" in _docker("inspect", "-f", "{{json .NetworkSettings.Ports}}", _container(checkout, service))
