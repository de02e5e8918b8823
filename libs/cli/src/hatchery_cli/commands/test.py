"""`hatchery test`: the checks and tests of a checkout, as CI runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

CHECKS: list[tuple[str, list[str]]] = [
    ("ruff check", ["ruff", "check", "."]),
    ("ruff format", ["ruff", "format", "--check", "."]),
    ("import contracts", ["lint-imports"]),
    ("spelling", ["codespell"]),
    ("types", ["pyright"]),
]
WORKERS = 2
ACCEPTANCE = "tests/acceptance"
MEMBERS = ("libs/*", "services/*", "container/controller")


def checkout() -> Path:
    """The checkout that is tested: the one whose ./hatchery was called, else the current directory."""
    return Path(os.environ.get("HATCHERY_CHECKOUT") or Path.cwd())


def checks(root: Path) -> list[tuple[str, list[str], Path]]:
    """Name, command and working directory of every check; deptry runs once per member."""
    rows = [(name, command, root) for name, command in CHECKS]
    for pattern in MEMBERS:
        members = [member for member in sorted(root.glob(pattern)) if (member / "pyproject.toml").exists()]
        rows.extend((f"dependencies of {member.name}", ["deptry", "src"], member) for member in members)
    return rows


def run_one(name: str, command: list[str], where: Path, environment: dict[str, str]) -> bool:
    """Run one check, print a line, and its output when it failed."""
    started = time.monotonic()
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(program), *command[1:]], cwd=where, env=environment, capture_output=True, text=True)
    ok = done.returncode == 0
    typer.secho(f"{'ok  ' if ok else 'FAIL'} {name} ({time.monotonic() - started:.1f} s)", fg="green" if ok else "red")
    if not ok:
        typer.echo(done.stdout + done.stderr)
    return ok


def stages(given: Sequence[str], *, fast: bool) -> list[tuple[str, list[str]]]:
    """The runs of pytest: quick tests, tests that load the machine, and the mission's, whose table is checked last."""
    heavy = "slow or chaos or real or containers"
    side_by_side = ["-q", "-n", str(WORKERS), "--dist", "loadfile"]
    if given and not fast:
        return [("tests", list(given))]
    quick = ("quick tests", [*side_by_side, "-m", f"not ({heavy})", *given])
    if fast:
        return [quick]
    loading = ("heavy tests", [*side_by_side, "-m", heavy, "--ignore", ACCEPTANCE, "--durations=15"])
    return [quick, loading, ("the mission", ["-q", ACCEPTANCE])]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(
    context: typer.Context,
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out tests marked slow, chaos, real and containers.")
    ] = False,
    checks_only: Annotated[bool, typer.Option("--checks", help="Only the checks, no tests.")] = False,
    tests_only: Annotated[bool, typer.Option("--tests", help="Only the tests, no checks.")] = False,
) -> None:
    """Run the checks, then the tests. Everything else on the line goes to pytest."""
    root = checkout()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    failed: list[str] = []
    if not tests_only:
        failed = [name for name, command, where in checks(root) if not run_one(name, command, where, environment)]
    if not checks_only:
        for name, arguments in stages(context.args, fast=fast):
            typer.secho(name, bold=True)
            if subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=root, env=environment).returncode != 0:
                failed.append(name)
    if failed:
        typer.secho(f"failed: {', '.join(failed)}", fg="red")
        raise typer.Exit(1)
    typer.secho("all green", fg="green")
