"""All benchmarks, one after the other, in one table.

    python tests/bench/run_all.py [--json] [--only ready,relay] [--pairs N]

Nothing else should run meanwhile; the table names the load that each benchmark met.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures import Figure, load, table

_NAMES = ("bus", "relay", "footprint", "ready", "first_turn", "install")
_HERE = Path(__file__).resolve().parent


def run(name: str, pairs: int | None) -> dict[str, Any]:
    """The report of one benchmark; one that broke reports a figure that says so."""
    command = [sys.executable, str(_HERE / f"bench_{name}.py")]
    if name != "bus":
        command.append("--json")
    if pairs is not None:
        command += ["--rounds" if name == "bus" else "--pairs", str(pairs)]
    began, before = time.time(), load()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    times = {"load_before": before, "load_after": load(), "seconds": round(time.time() - began)}
    try:
        found = json.loads(done.stdout if name == "bus" else done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        words = (done.stderr or done.stdout).strip().splitlines()
        broken = Figure(f"bench_{name} broke", 1, "", at_most=0, detail=words[-1][:200] if words else "")
        return {"figures": [_row(broken)], **times}
    return {"figures": [_row(one) for one in _of_bus(found)], **times} if name == "bus" else found


def _of_bus(found: dict[str, Any]) -> list[Figure]:
    """bench_bus has a shape of its own."""
    rates = found["per_second"]
    consumed = f"wrapper {rates['wrapper']}/s, fetch(100) {rates['fetch']}/s"
    published = f"publish_rows {rates['relay']}/s, raw {rates['raw_batches']}/s"
    return [
        Figure("consume ÷ fetch(100)", found["consume_ratio"], "", at_least=2, detail=consumed),
        Figure("publish_rows ÷ raw batches", found["relay_ratio"], "", at_least=0.7, detail=published),
    ]


def _row(one: Figure) -> dict[str, Any]:
    return asdict(one) | {"ok": one.ok, "bound": one.bound}


def main() -> int:
    """Exit status 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--only", default=",".join(_NAMES), help="names, separated by commas")
    parser.add_argument("--pairs", type=int, help="pairs or rounds of each [default: its own]")
    chosen = parser.parse_args()
    reports: dict[str, dict[str, Any]] = {}
    for name in chosen.only.split(","):
        reports[name] = run(name, chosen.pairs)
        if not chosen.json:
            print(f"== {name}\n{table(reports[name])}\n", flush=True)
    if chosen.json:
        print(json.dumps(reports))
    return 0 if all(one["ok"] for report in reports.values() for one in report["figures"]) else 1


if __name__ == "__main__":
    sys.exit(main())
