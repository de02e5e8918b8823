"""docker-compose.yml: the image builds, and NATS, Postgres and the five services become healthy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

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
    build = [
        "docker",
        "build",
        "-q",
        "--network",
        "host",
        "-t",
        "hatchery-service",
        "-f",
        "container/Dockerfile.service",
        ".",
    ]
    subprocess.run(build, cwd=checkout, check=True, timeout=800, capture_output=True)
    compose(checkout, "up", "-d")
    wanted = {"postgres", "api", "provisioner", "billing", "agent", "runtime-proxy"}

    def healthy() -> bool:
        return all("healthy" in _state(checkout, name) for name in wanted)

    eventually(healthy, 180, every=2)
    published = {name for name in (*wanted, "nats") if _ports(checkout, name)}
    assert published == {"api", "runtime-proxy"}
    for name in ("api", "billing"):
        seen = subprocess.run(
            ["docker", "inspect", _container(checkout, name)], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        for line in (checkout / "secrets" / f"{name}.env").read_text().splitlines():
            assert line.partition("=")[2] not in seen, "a secret shows in the container's inspection"


def _container(checkout: Path, service: str) -> str:
    return compose(checkout, "ps", "-q", service).strip()


def _inspect(checkout: Path, service: str, template: str) -> str:
    command = ["docker", "inspect", "-f", template, _container(checkout, service)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def _state(checkout: Path, service: str) -> str:
    return _inspect(checkout, service, "{{.State.Health.Status}}").replace("unhealthy", "sick")


def _ports(checkout: Path, service: str) -> bool:
    return "HostPort" in _inspect(checkout, service, "{{json .NetworkSettings.Ports}}")
