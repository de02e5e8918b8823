"""How long the first words of a real gateway take: from POST of a message to its run's events on the thread's stream.

    python tests/bench/bench_first_turn.py [--json] [--pairs 3]

Each round provisions an instance anew and takes two turns in one thread. Bounds: the first byte of the stream and the run's start
come within 1 s. Reported for both turns: the gateway's first sign of life and its first text; the offline demo model answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from figures import Figure, main, median, spread
from hatchery_cli.demo.website import Website
from rig import operation, rig

_TURN_S = 180.0


@dataclass(frozen=True)
class Turn:
    """Seconds after the POST was sent."""

    accepted: float
    first_byte: float
    started: float
    gateway: float
    first_text: float
    finished: float
    last_id: str | None


def take_turn(site: Website, thread: str, text: str, after: str | None) -> Turn:
    """Post a message, then read the thread's stream until the run has ended."""
    began = time.monotonic()
    run_id = site.post(f"/api/threads/{thread}/messages", {"text": text})["run_id"]
    seen: dict[str, float] = {"accepted": time.monotonic() - began}
    last_id = after
    for one in site.follow(f"/api/threads/{thread}/events", _TURN_S, after):
        if not isinstance(one.data, dict) or one.data.get("run_id") != run_id:
            continue
        last_id = one.id or last_id
        now = time.monotonic() - began
        seen.setdefault("byte", now)
        seen.setdefault(one.event, now)
        if one.event == "run.failed":
            raise RuntimeError(f"the run failed: {one.data}")
        if one.event == "run.finished":
            break
    finished = time.monotonic() - began
    times = (seen[name] for name in ("accepted", "byte", "run.started", "run.status", "text.delta"))
    return Turn(*times, finished, last_id)


def measure(chosen: argparse.Namespace) -> Sequence[Figure]:
    """Rounds on one stack, each with a fresh instance."""
    first: list[Turn] = []
    second: list[Turn] = []
    with rig() as stack:
        for number in range(chosen.pairs):
            with stack.website(f"turn-{number}@example.com") as site:
                operation(site, site.post("/api/openclaw/instance"))
                thread = site.post("/api/threads", {"title": "bench"})["thread_id"]
                first.append(take_turn(site, thread, "Hello, are you there?", None))
                second.append(take_turn(site, thread, "And now?", first[-1].last_id))
                operation(site, site.delete("/api/openclaw/instance"))
            print(f"first text {first[-1].first_text:.2f} s, then {second[-1].first_text:.2f} s", file=sys.stderr)
    figures: list[Figure] = []
    for name, turns in (("first turn", first), ("second turn", second)):
        figures += [
            _figure(f"{name}, first byte", [turn.first_byte for turn in turns], at_most=1.0),
            _figure(f"{name}, run started", [turn.started for turn in turns], at_most=1.0),
            _figure(f"{name}, gateway's first sign", [turn.gateway for turn in turns]),
            _figure(f"{name}, first text", [turn.first_text for turn in turns]),
            _figure(f"{name}, accepted", [turn.accepted for turn in turns]),
            _figure(f"{name}, finished", [turn.finished for turn in turns]),
        ]
    return figures


def _figure(name: str, values: list[float], at_most: float | None = None) -> Figure:
    return Figure(name, median(values, 3), "s", at_most=at_most, detail=f"{len(values)} rounds, {spread(values)}")


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, pairs=3))
