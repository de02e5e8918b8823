"""A fresh clone on a machine that knows nothing: `./hatchery up --detach` until the curl walk of the README would work.

    python tests/bench/bench_install.py [--json] [--pairs 1]

Clones this checkout's last commit, with an empty HATCHERY_CACHE. Install: from exec until the servers are started (Python
packages, Postgres, Node, OpenClaw), ≤ 90 s. Ready: what remains, ≤ 5 s. Then a warm `./hatchery up`, ≤ 3 s.
Package managers keep their own caches; what they hold already is not downloaded again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Figure, main, median, spread
from rig import CHECKOUT, Rig


def once(directory: Path) -> dict[str, float]:
    """Clone, start, stop, start again, stop; seconds of each."""
    clone = directory / "clone"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], check=True)
    stack = Rig(directory / "stack")
    stack.environment = {name: value for name, value in stack.environment.items() if name != "VIRTUAL_ENV"}
    stack.environment["HATCHERY_CACHE"] = str(directory / "cache")
    front_door = (str(clone / "hatchery"),)
    began = time.time()
    try:
        total = stack.up(command=front_door)
        installed = json.loads(stack.layout.state_file.read_text())["started_at"] - began
        found = {"install": installed, "ready": total - installed, "down": stack.down(command=front_door)}
        found["warm"] = stack.up(command=front_door)
    finally:
        stack.down(command=front_door)
    return found


def measure(chosen: argparse.Namespace) -> Sequence[Figure]:
    """Each round in a directory of its own."""
    rounds: list[dict[str, float]] = []
    for _ in range(chosen.pairs):
        directory = Path(tempfile.mkdtemp(prefix="hatchery-bench-", dir=os.environ.get("HATCHERY_BENCH_DIR")))
        directory.chmod(0o711)
        try:
            rounds.append(once(directory))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def figure(name: str, key: str, at_most: float | None) -> Figure:
        values = [one[key] for one in rounds]
        return Figure(name, median(values), "s", at_most=at_most, detail=f"{len(values)} rounds, {spread(values)}")

    return [
        figure("install from a fresh clone", "install", 90),
        figure("then ready", "ready", 5),
        figure("warm ./hatchery up --detach", "warm", 3),
        figure("./hatchery down", "down", None),
    ]


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, pairs=1))
