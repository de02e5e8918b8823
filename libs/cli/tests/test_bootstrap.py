"""The bootstrap script: clear refusals without a usable Python, one installation for concurrent starts, quick afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("sh", "cmp", "cat", "head", "dirname", "find", "awk", "rm", "mkdir", "mv", "cp", "id")


@pytest.fixture
def checkout(place: Path) -> Path:
    """A fresh copy of this checkout, without what was ever installed or compiled in it."""
    copy = place / "checkout"
    copy.mkdir()
    for name in ("hatchery", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy2(ROOT / name, copy / name)
    leave = shutil.ignore_patterns("__pycache__", "tests", "node_modules")
    for name in ("libs", "services", "container"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    return copy


@pytest.fixture
def tools(place: Path) -> Path:
    """A PATH with what POSIX promises and no Python."""
    path = place / "bin"
    path.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (path / name).symlink_to(found)
    return path


def fake_python(tools: Path, script: str) -> None:
    (tools / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "python3").chmod(0o755)


def start(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([checkout / "hatchery", *words], capture_output=True, text=True, env=environment, check=False)


def test_without_python_it_says_what_to_do(checkout: Path, tools: Path) -> None:
    done = start(checkout, "up", PATH=str(tools))
    assert done.returncode == 1
    assert "python3 was not found" in done.stderr
    assert "-> install Python 3.11" in done.stderr


def test_old_python_is_named(checkout: Path, tools: Path) -> None:
    fake_python(tools, '[ "$1" = --version ] && { echo Python 3.9.2; exit; }; exit 1')
    done = start(checkout, "up", PATH=str(tools))
    assert done.returncode == 1
    assert "Python 3.9.2 is too old" in done.stderr
    assert "HATCHERY_PYTHON" in done.stderr


def test_python_without_venv_is_named(checkout: Path, tools: Path) -> None:
    fake_python(tools, '[ "$1" = --version ] && { echo Python 3.12.1; exit; }; case "$2" in *ensurepip*) exit 1;; esac')
    done = start(checkout, "up", PATH=str(tools))
    assert done.returncode == 1
    assert "venv (or ensurepip) is missing" in done.stderr


def test_locks_and_script_name_no_host() -> None:
    for name in ("hatchery", "requirements.lock", "requirements-dev.lock"):
        assert "://" not in (ROOT / name).read_text()


@pytest.mark.slow
def test_installs_once_even_when_interrupted_and_started_twice(checkout: Path) -> None:
    with subprocess.Popen(
        [checkout / "hatchery", "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as cut:
        time.sleep(2)
        cut.kill()
    starts = [
        subprocess.Popen(
            [checkout / "hatchery", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    results = [(*one.communicate(timeout=110), one.returncode) for one in starts]
    assert [code for _, _, code in results] == [0, 0], results
    assert sum("installing into .venv" in stderr for _, stderr, _ in results) == 1
    assert list(checkout.glob("libs/common/src/hatchery_common/__pycache__/errors.*.pyc"))
    began = time.monotonic()
    assert start(checkout, "--help").stderr == ""
    assert time.monotonic() - began < 2  # 0.2 s on a quiet machine
