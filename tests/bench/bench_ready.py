"""How long a user waits: for ready, beside a bare `openclaw gateway run`, and for the answer to a wish.

    python tests/bench/bench_ready.py [--json] [--pairs 5] [--users 10]

Ready: POST /api/openclaw/instance until its operation is finished, beside the same Node, OpenClaw, configuration and
environment started by hand on fresh state, polled until /ready; alternating, on the same running stack. Bound: ratio ≤ 1.15.
Also, free of what the machine does in between: the same provision ÷ its own gateway's time from spawn to /ready.
Accepted: 202 to provision, stop, start and delete of each user (stand-in gateway, fsync on). Bound: median ≤ 30 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from figures import Figure, main, median, percentile, spread
from hatchery_cli.demo.website import Website
from hatchery_cli.embedded import upping
from rig import Rig, operation, rig, until

_READY_S = 240.0


@dataclass(frozen=True)
class Recipe:
    """How the product started a gateway, with its directory replaced by a place-holder."""

    config: str
    environment: dict[str, str]
    command: list[str]
    port: int
    uid: int
    gid: int

    @staticmethod
    def of(machine: Path) -> Recipe:
        """Read from the running gateway of this machine."""
        config = (machine / "state" / "openclaw.json").read_text()
        pid = _gateway(machine)
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        pairs = (entry.decode().partition("=") for entry in environ if entry)
        environment = {name: value.replace(str(machine), "{root}") for name, _, value in pairs}
        command = [word.decode() for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
        if len(command) < 4:  # the gateway has set a title of its own
            layout = upping.openclaw.path()
            command = [str(Path(f"/proc/{pid}/exe").resolve()), str(layout), "gateway", "run"]
        about = psutil.Process(pid)
        port = int(json.loads(config)["gateway"]["port"])
        return Recipe(
            config.replace(str(machine), "{root}"), environment, command, port, about.uids().real, about.gids().real
        )


def _gateway(machine: Path) -> int:
    return int(json.loads((machine / "controller.json").read_text())["gateway_pid"])


def bare(recipe: Recipe, root: Path) -> float:
    """Start the gateway by hand on fresh state; seconds to /ready."""
    for name in ("state", "workspace", "home", "tmp", "logs"):
        (root / name).mkdir(parents=True)
    (root / "state" / "openclaw.json").write_text(recipe.config.replace("{root}", str(root)))
    (root / "state" / "openclaw.json").chmod(0o600)
    for path in (root, *root.rglob("*")):
        os.chown(path, recipe.uid, recipe.gid)
    environment = {name: value.replace("{root}", str(root)) for name, value in recipe.environment.items()}
    with (root / "logs" / "gateway.log").open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            recipe.command, cwd=root / "workspace", env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, user=recipe.uid, group=recipe.gid, extra_groups=[],
        )  # fmt: skip
    try:
        until(recipe.port, "/ready", deadline_s=_READY_S, every_s=0.05)
        return time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(root)


@dataclass(frozen=True)
class Provision:
    """One provision: seconds to the end of its operation, and those that its gateway took for itself."""

    seconds: float
    gateway_s: float
    machine: Path


def provisioned(stack: Rig, site: Website) -> Provision:
    """Provision and follow; beside it watch the gateway's own /ready."""
    with ThreadPoolExecutor(1) as beside:
        began = time.time()
        answer = site.post("/api/openclaw/instance")
        machine = stack.machine(answer["instance_id"])
        gateway_ready = beside.submit(_ready_at, machine)
        operation(site, answer)
        seconds = time.time() - began
        return Provision(seconds, gateway_ready.result() - _spawned_at(_gateway(machine)), machine)


def _spawned_at(pid: int) -> float:
    """To a hundredth of a second; psutil knows only when the machine was booted to a second."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def _ready_at(machine: Path) -> float:
    config = machine / "state" / "openclaw.json"
    end = time.monotonic() + _READY_S
    while not config.exists() and time.monotonic() < end:
        time.sleep(0.05)
    until(int(json.loads(config.read_text())["gateway"]["port"]), "/ready", deadline_s=_READY_S, every_s=0.05)
    return time.time()


def ready_pairs(stack: Rig, pairs: int) -> list[Figure]:
    """Alternating, the order changed in each pair; a first provision, not counted, tells how the gateway is started."""
    ours: list[float] = []
    shares: list[float] = []
    by_hand: list[float] = []
    with stack.website("ready@example.com") as site:

        def one_of_ours(*, counted: bool = True) -> Recipe:
            done = provisioned(stack, site)
            recipe = Recipe.of(done.machine)
            operation(site, site.delete("/api/openclaw/instance"))
            if counted:
                ours.append(done.seconds)
                shares.append(done.seconds / done.gateway_s)
                print(f"provision to ready: {done.seconds:.2f} s, gateway {done.gateway_s:.2f} s", file=sys.stderr)
            return recipe

        def one_by_hand(number: int, recipe: Recipe) -> None:
            by_hand.append(bare(recipe, stack.layout.machines / f".bare-{number}"))
            print(f"bare gateway to /ready: {by_hand[-1]:.2f} s", file=sys.stderr)

        recipe = one_of_ours(counted=False)
        for number in range(pairs):
            if number % 2:
                one_by_hand(number, recipe)
                one_of_ours()
            else:
                one_of_ours()
                one_by_hand(number, recipe)
    ratios = [mine / theirs for mine, theirs in zip(ours, by_hand, strict=True)]
    return [
        Figure("ready ÷ bare gateway", median(ratios), "", at_most=1.15, detail=f"{pairs} pairs, {spread(ratios)}"),
        Figure("ready ÷ its own gateway", median(shares, 3), "", detail=spread(shares, 3)),
        Figure("provision to ready", median(ours), "s", detail=spread(ours)),
        Figure("bare gateway to /ready", median(by_hand), "s", detail=spread(by_hand)),
    ]


def accepted(stack: Rig, users: int) -> list[Figure]:
    """The four wishes of each user, one after the other, each measured and then followed to its end."""
    took: dict[str, list[float]] = {"provision": [], "stop": [], "start": [], "delete": []}
    for number in range(users):
        with stack.website(f"user-{number}@example.com") as site:
            wishes = {
                "provision": lambda site=site: site.post("/api/openclaw/instance"),
                "stop": lambda site=site: site.post("/api/openclaw/instance/stop"),
                "start": lambda site=site: site.post("/api/openclaw/instance/start"),
                "delete": lambda site=site: site.delete("/api/openclaw/instance"),
            }
            site.get("/api/me")  # the connection is open and the user known, as after signing in
            for name, wish in wishes.items():
                began = time.perf_counter()
                answer = wish()
                took[name].append((time.perf_counter() - began) * 1000)
                operation(site, answer)
    every = [value for values in took.values() for value in values]
    detail = ", ".join(f"{name} {median(values, 1)}" for name, values in took.items())
    return [
        Figure("accepted (202), median", median(every, 1), "ms", at_most=30, detail=f"{len(every)} wishes; {detail}"),
        Figure("accepted (202), p95", round(percentile(every, 0.95), 1), "ms", detail=spread(every, 1)),
    ]


def measure(chosen: argparse.Namespace) -> Sequence[Figure]:
    """Latency on stand-in gateways first, then the pairs on real ones; each on a stack of its own."""
    found: list[Figure] = []
    if chosen.users:
        with rig(fake=True) as stack:
            found += accepted(stack, chosen.users)
    if chosen.pairs:
        with rig() as stack:
            found += ready_pairs(stack, chosen.pairs)
    return found


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, pairs=5, users=10))
