"""Checks of this machine: they need no running stack."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil
from hatchery_common.errors import SetupError

from hatchery_cli.doctor.findings import Finding, error, note, ok, warning
from hatchery_cli.embedded import nats, node, openclaw, postgres
from hatchery_cli.embedded.cache import cache_root
from hatchery_cli.embedded.isolation import REMEDY, missing_isolation
from hatchery_cli.embedded.layout import Layout, Ports
from hatchery_cli.embedded.places import closed_ancestor, free_mib, holder, is_port_free, listeners
from hatchery_cli.embedded.port_range import SPAN
from hatchery_cli.embedded.stack import environment
from hatchery_cli.embedded.state import read_state

PACKAGES = ("hatchery_common", "hatchery_api", "hatchery_provisioner", "hatchery_billing", "hatchery_runtime_proxy",
            "hatchery_agent", "hatchery_controller")  # fmt: skip
_REINSTALL = "remove .venv and run ./hatchery again"
_GATEWAY_MIB = 1100


def check_machine(layout: Layout, *, running: bool, left: Collection[int] = ()) -> list[Finding]:
    """Everything about this machine, in the order in which it matters; `left` are pids of our own parts without an `up`."""
    ports = Ports(layout.choices().port)
    found = [check_python(), check_packages(PACKAGES), check_memory(), *check_disk(layout), check_place(layout)]
    found += [check_isolation(layout, running=running or bool(left))]
    found += [] if running else [check_ports(ports, left)]
    return [*found, check_files(), check_nats(), check_postgres(), check_node(), check_openclaw(), check_docker()]


def check_python() -> Finding:
    """The interpreter itself."""
    version = platform.python_version()
    if sys.prefix == sys.base_prefix:
        return note("python_no_venv", f"Python {version}, not in Hatchery's own environment", "call it by ./hatchery")
    return ok("python", f"Python {version} in {sys.prefix}")


def check_packages(names: Sequence[str]) -> Finding:
    """Whether our own packages can be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as problem:
            return error("python_broken", f"{name} cannot be imported: {problem}", _REINSTALL)
    return ok("packages", f"{len(names)} packages of Hatchery can be imported")


def check_memory() -> Finding:
    """Room for at least two gateways."""
    free = psutil.virtual_memory().available // 1024**2
    text = f"{free} MiB of memory are free; a gateway takes about {_GATEWAY_MIB} MiB"
    if free < _GATEWAY_MIB:
        return error("memory_low", text, "free some memory: not even one gateway fits")
    if free < 2 * _GATEWAY_MIB:
        return warning("memory_tight", text, "run one gateway at a time, or add memory")
    return ok("memory", text)


def check_disk(layout: Layout) -> list[Finding]:
    """Free space where data and installations go."""
    needs = [("data", layout.root, 200, 2048), ("cache", cache_root(), 50 if openclaw.is_installed() else 1200, 0)]
    found: list[Finding] = []
    for name, place, least, good in needs:
        free = free_mib(place)
        text = f"{free} MiB free for {name} in {place}"
        remedy = "free some space or move it (--dir, HATCHERY_CACHE)"
        if free < least:
            found.append(error("disk_full", f"{text}, {least} MiB are needed", remedy))
        elif free < good:
            found.append(warning("disk_tight", text, "free some space: the event log keeps growing"))
        else:
            found.append(ok(f"disk_{name}", text))
    return found


def check_place(layout: Layout) -> Finding:
    """Whether other user ids can pass through to what they need."""
    if os.geteuid() != 0:
        return ok("place", f"data in {layout.root}")
    for place in (layout.root, cache_root()):
        if closed := closed_ancestor(place):
            return error(
                "place_closed",
                f"{closed} is closed to other users, who must pass through it to {place}",
                f"choose another directory (--dir, HATCHERY_CACHE), or: chmod o+x {closed}",
            )
    return ok("place", f"{layout.root} and {cache_root()} can be passed through")


def check_isolation(layout: Layout, *, running: bool) -> Finding:
    """Whether each gateway has a user of its own: in the running stack, else in one that would be started from here."""
    if running:
        missing = (read_state(layout) or {}).get("isolation")
    else:
        missing = missing_isolation(environment(layout, layout.choices(), dict(os.environ)))
    if missing:
        return warning("isolation_none", missing, REMEDY)
    return ok("isolation", "each gateway has a user of its own")


def check_ports(ports: Ports, ours: Collection[int] = ()) -> Finding:
    """Whether the stack's ports are free, or held by its own parts alone."""
    wanted = {**ports.of_services(), "NATS": ports.nats, "Postgres": ports.postgres}
    held = {name: port for name, port in wanted.items() if not is_port_free(port)}
    taken = [f"{port} ({name}) by {holder(port)}" for name, port in held.items() if not _is_held_by(ours, port)]
    if taken:
        return error("port_taken", f"in use: {', '.join(taken)}", "stop those, or choose others: hatchery up --port N")
    return ok("ports", f"ports {ports.base} to {ports.base + SPAN - 1} can be used")


def _is_held_by(pids: Collection[int], port: int) -> bool:
    holders = listeners(port)
    return bool(holders) and set(pids).issuperset(holders)


def check_files() -> Finding:
    """How many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        return warning("files_few", f"a process may open {soft} files only", f"ulimit -n {min(hard, 65536)}")
    return ok("files", f"a process may open {soft} files")


def _version(command: Sequence[str], name: str) -> Finding:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd="/", check=True)
    except (OSError, subprocess.SubprocessError) as problem:
        return error(f"{name}_broken", f"{command[0]} does not run: {problem}", _REINSTALL)
    return ok(name, f"{done.stdout.strip().splitlines()[0]}")


def check_nats() -> Finding:
    """The embedded NATS server."""
    try:
        return _version([str(nats.binary()), "--version"], "nats")
    except SetupError as problem:
        return error(problem.code, problem.message, problem.hint or _REINSTALL)


def check_postgres() -> Finding:
    """The embedded Postgres."""
    try:
        return _version([str(postgres.wheel_binaries() / "postgres"), "--version"], "postgres")
    except SetupError as problem:
        return error(problem.code, problem.message, problem.hint or _REINSTALL)


def check_node() -> Finding:
    """Node for gateways: OpenClaw needs 24.16 or newer."""
    try:
        found = _version([str(node.wheel_node()), "--version"], "node")
    except SetupError as problem:
        return error(problem.code, problem.message, problem.hint or _REINSTALL)
    parts = found.text.lstrip("v").split(".")
    if found.level == "ok" and (int(parts[0]), int(parts[1])) < (24, 16):
        return error("node_old", f"Node {found.text} is older than 24.16", _REINSTALL)
    return Finding(found.code, found.level, f"Node {found.text}", found.remedy)


def check_openclaw() -> Finding:
    """The pinned OpenClaw in the shared cache."""
    if openclaw.is_installed():
        return ok("openclaw", f"OpenClaw {openclaw.version()} in {openclaw.path().parent}")
    text = f"OpenClaw {openclaw.version()} is not in {cache_root()} (or was damaged there)"
    return warning("openclaw_missing", text, "hatchery openclaw install (up does it too)")


def check_docker() -> Finding:
    """Docker, for the driver of that name."""
    program = shutil.which("docker")
    if program is None and not Path("/var/run/docker.sock").exists():
        return note("docker_absent", "no Docker here", "optional: only the docker driver and compose need it")
    if program is None:
        return ok("docker", "a Docker socket is here")
    try:
        done = subprocess.run(
            [program, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as problem:
        return note(
            "docker_silent", f"docker does not answer: {problem}", "optional: start it if you want the docker driver"
        )
    if done.returncode != 0:
        return note(
            "docker_silent", "the Docker server does not answer", "optional: start it if you want the docker driver"
        )
    return ok("docker", f"Docker {done.stdout.strip()}")
