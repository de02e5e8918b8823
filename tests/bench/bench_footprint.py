"""What the five services cost: memory and idle CPU in one process, time to ready, and how fast the commands are.

    python tests/bench/bench_footprint.py [--json] [--pairs 5] [--idle 60]

`run`: NATS and Postgres are already there (their `up` is taken away), `hatchery run` is started by hand until every /readyz
says yes: ≤ 2 s. After 60 s idle: ≤ 150 MiB RSS; over the next 60 s services, NATS and Postgres: ≤ 2 % of a core; a controller:
≤ 40 MiB. `hatchery --help` ≤ 0.5 s, a warm `up` ≤ 3 s. Our sources are byte-compiled first, as ./hatchery does.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from figures import Figure, main, median, spread
from rig import Rig, compile_sources, family, operation, ready_ports, rig, until

_TICK = os.sysconf("SC_CLK_TCK")


def command_start(rounds: int) -> Figure:
    """`hatchery --help`, from exec to exit."""
    took: list[float] = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("hatchery"), "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    return Figure("hatchery --help", median(took[1:]), "s", at_most=0.5, detail=spread(took[1:]))


def warm_starts(stack: Rig, rounds: int) -> list[Figure]:
    """`up --detach` and `down` on a directory that has run before."""
    ups, downs = [], []
    for _ in range(rounds):
        ups.append(stack.up())
        downs.append(stack.down())
    return [
        Figure("warm up --detach", median(ups), "s", at_most=3, detail=spread(ups)),
        Figure("down", median(downs), "s", detail=spread(downs)),
    ]


def take_over(stack: Rig) -> None:
    """Leave NATS and Postgres running without an `up` that would start services of its own."""
    services, supervisor = psutil.Process(stack.pid("services")), psutil.Process(stack.pid("services")).parent()
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    services.terminate()
    services.wait(30)


class Services:
    """`hatchery run` of all five, started by us."""

    def __init__(self, stack: Rig) -> None:
        self._stack = stack
        log = (stack.layout.logs / "bench.log").open("ab")
        began = time.perf_counter()
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hatchery_cli", "run", "--stack", str(stack.layout.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=stack.environment, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        for port in ready_ports(stack.ports):
            until(port, "/readyz", deadline_s=30, every_s=0.01)
        self.ready_s = time.perf_counter() - began

    def stop(self) -> float:
        """Stop them; the seconds that took."""
        began = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        return time.perf_counter() - began


def run_times(stack: Rig, rounds: int) -> list[Figure]:
    """From exec of `run` to all ready, and the end."""
    took, ended = [], []
    for _ in range(rounds):
        services = Services(stack)
        took.append(services.ready_s)
        ended.append(services.stop())
    return [
        Figure("run to all ready", median(took), "s", at_most=2, detail=spread(took)),
        Figure("run, SIGTERM to exit", median(ended), "s", detail=spread(ended)),
    ]


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return round(fields["Rss"], 1), round(fields["Pss"], 1)


def cpu_seconds(pid: int, *, alone: bool = False) -> float:
    """CPU of a process, its living children, and those that it has already collected; machines are children of services."""
    total = 0.0
    for process in family(pid)[: 1 if alone else None]:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        own, collected = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        total += (own + (collected if process.pid == pid and not alone else 0)) / _TICK
    return total


def idle_share(pids: dict[str, int], seconds: int) -> dict[str, float]:
    """CPU of each over this time, in per cent of a core."""

    def spent() -> dict[str, float]:
        return {name: cpu_seconds(pid, alone=name != "postgres") for name, pid in pids.items()}

    began, before = time.monotonic(), spent()
    time.sleep(seconds)
    took, after = time.monotonic() - began, spent()
    return {name: 100 * (after[name] - before[name]) / took for name in pids}


def idle(stack: Rig, seconds: int) -> list[Figure]:
    """Memory after the first spell of idleness, CPU over the second; then the same with an instance running."""
    services = Services(stack)
    pids = {"services": services.pid, "nats": stack.pid("nats"), "postgres": stack.pid("postgres")}
    try:
        time.sleep(seconds)
        rss, pss = memory(services.pid)
        share = idle_share(pids, seconds)
        with stack.website("idle@example.com") as site:
            answer = site.post("/api/openclaw/instance")
            operation(site, answer)
        controller = next(
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if "hatchery_controller" in (words := process.info["cmdline"] or ())
            and str(stack.machine(answer["instance_id"])) in words
        )
        time.sleep(min(10, seconds))
        with_one = idle_share(pids | {"controller": controller}, seconds)
        controller_rss, controller_pss = memory(controller)
        with stack.website("idle@example.com") as site:
            operation(site, site.delete("/api/openclaw/instance"))
    finally:
        services.stop()
    only = {name: share_of for name, share_of in with_one.items() if name != "controller"}
    return [
        Figure("RSS of the five services, idle", rss, "MiB", at_most=150, detail=f"PSS {pss} MiB, after {seconds} s"),
        Figure("idle CPU", round(sum(share.values()), 2), "% of a core", at_most=2, detail=_shares(share)),
        Figure(
            "idle CPU, one instance", round(sum(only.values()), 2), "% of a core", at_most=2, detail=_shares(with_one)
        ),
        Figure("RSS of a controller", controller_rss, "MiB", at_most=40, detail=f"PSS {controller_pss} MiB"),
    ]


def _shares(share: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in share.items())


def measure(chosen: argparse.Namespace) -> Sequence[Figure]:
    """Everything on one stack with the stand-in gateway."""
    compile_sources()
    found = [command_start(chosen.pairs)]
    with rig(fake=True, started=False) as stack:
        cold = stack.up()
        stack.down()
        found.append(Figure("first up --detach, all installed", round(cold, 2), "s", at_most=5))
        found += warm_starts(stack, chosen.pairs)
        stack.up()
        take_over(stack)
        found += run_times(stack, chosen.pairs)
        found += idle(stack, chosen.idle)
    return found


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, pairs=5, idle=60))
