"""The rules of CONTRIBUTING.md that a linter cannot hold."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 40
SERVICE_FILES = {
    "__init__", "main", "settings", "routes", "handlers", "queries", "ports", "domain", "adapters", "migrations",
}  # fmt: skip
EXTRA_FILES = {
    "provisioner": {"reconciler"},
    "billing": {"audit", "loops"},
    "agent": {"worker"},
    "runtime-proxy": set[str](),
    "api": set[str](),
}
ENVIRONMENT_READERS = {"failpoints.py", "plugin.py", "main.py"}


def _sources() -> list[Path]:
    found = [
        *ROOT.glob("libs/*/src/**/*.py"),
        *ROOT.glob("services/*/src/**/*.py"),
        *ROOT.glob("container/*/src/**/*.py"),
    ]
    return sorted(found)


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_are_sources_to_check() -> None:
    assert len(_sources()) > 50


def test_modules_and_functions_stay_small() -> None:
    ours = [path for path in _tracked() if path.suffix == ".py"]
    long_modules = [_relative(path) for path in ours if len(path.read_text().splitlines()) > MAX_MODULE_LINES]
    long_functions = [
        f"{_relative(path)}:{function.lineno} {function.name}"
        for path in ours
        for function in _functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long_modules, "split these by noun"
    assert not long_functions, "split these"


def test_ports_of_tests_come_from_one_place() -> None:
    """A port that the kernel chose may be another program's a moment later: hatchery_common.testing.ports leases them."""
    asks = re.compile(r"""\.bind\(\("127\.0\.0\.1", 0""" + r"""\)\)""")
    held = {"libs/common/tests/test_run.py"}  # keeps the socket that it bound
    found = {_relative(path) for path in _tracked() if path.suffix == ".py" and asks.search(path.read_text())}
    assert found <= held


def test_names_of_modules_say_what_is_inside() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "manager", "common_utils"}
    assert not [_relative(path) for path in _sources() if path.stem in vague]


@pytest.mark.parametrize("service", sorted(EXTRA_FILES))
def test_every_service_has_the_same_files(service: str) -> None:
    package = ROOT / "services" / service / "src" / f"hatchery_{service.replace('-', '_')}"
    names = {path.stem for path in package.iterdir() if path.name not in {"__pycache__", "py.typed"}}
    assert {"main", "settings", "ports"} <= names
    assert names <= SERVICE_FILES | EXTRA_FILES[service]


def test_settings_enter_once() -> None:
    """Only the composition roots and the command line read the process's environment."""
    readers = [
        _relative(path)
        for path in _sources()
        if re.search(r"os\.environ[.\[)]|getenv\(", path.read_text())
        and "hatchery_cli" not in path.parts
        and "hatchery_controller" not in path.parts
        and "testing" not in path.parts
        and path.name not in ENVIRONMENT_READERS
    ]
    assert not readers


def test_errors_have_their_own_codes() -> None:
    """Two error classes with the same code would be one to a program."""
    seen: dict[str, str] = {}
    doubles: list[str] = []
    for path in _sources():
        if "hatchery_controller" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for code in _class_codes(node):
                if code in seen and seen[code] != node.name:
                    doubles.append(f"{_relative(path)} {node.name} and {seen[code]} both say {code!r}")
                seen[code] = node.name
    assert not doubles


def _class_codes(node: ast.ClassDef) -> list[str]:
    return [
        str(item.value.value)
        for item in node.body
        if isinstance(item, ast.Assign)
        and isinstance(item.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == "code" for target in item.targets)
    ]


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, timeout=30).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_registry() -> None:
    hosts = re.compile(r"https?://[a-z.]*(?:py" + r"pi|python" + r"hosted|npm" + r"js)\.(?:org|com)")
    assert not [_relative(path) for path in _tracked() if hosts.search(path.read_text(errors="ignore"))]


def test_lock_files_carry_hashes_and_no_hosts() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        packages = re.findall(r"^[a-z0-9._-]+==\S+", text, flags=re.M)
        assert text.count("--hash=") >= len(packages) > 30


def test_migrations_are_named_by_their_revision() -> None:
    """The newest version is read from file names, so that start-up need not import Alembic."""
    found = [path for path in ROOT.glob("services/*/src/*/migrations/versions/*.py") if path.stem != "__init__"]
    assert found
    for path in found:
        prefix = path.stem.partition("_")[0]
        assert re.fullmatch(r"\d{4}", prefix), path
        assert re.search(rf'^revision(?:: str)? = "{prefix}"$', path.read_text(), re.M), path
