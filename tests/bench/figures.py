"""What a benchmark finds: figures with their bounds, printed as a table or as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number, the bound it has to keep (if any), and what it was made of."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bound is kept; a figure without one is only reported."""
        above = self.at_most is not None and self.value > self.at_most
        below = self.at_least is not None and self.value < self.at_least
        return not (above or below)

    @property
    def bound(self) -> str:
        """The bound as people read it."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


Measure = Callable[[argparse.Namespace], Sequence[Figure]]


def main(description: str | None, measure: Measure, *, pairs: int, **extra: int) -> int:
    """The command line that every benchmark has; exit status 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--pairs", type=int, default=pairs, help=f"pairs or rounds [default: {pairs}]")
    for name, default in extra.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[default: {default}]")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever loses patience leaves no stack running
    began, before = time.time(), load()
    figures = list(measure(chosen))
    report = {
        "figures": [asdict(one) | {"ok": one.ok, "bound": one.bound} for one in figures],
        "load_before": before,
        "load_after": load(),
        "seconds": round(time.time() - began),
    }
    print(json.dumps(report) if chosen.json else table(report))
    return 0 if all(one.ok for one in figures) else 1


def table(report: dict[str, Any]) -> str:
    """The figures in columns."""
    rows = [("figure", "value", "bound", "", "detail")]
    for one in report["figures"]:
        verdict = ("ok" if one["ok"] else "MISSED") if one["bound"] else ""
        rows.append((one["name"], f"{one['value']:g} {one['unit']}".strip(), one["bound"], verdict, one["detail"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    lines.append(f"load {report['load_before']} before, {report['load_after']} after; {report['seconds']} s")
    return "\n".join(line.rstrip() for line in lines)


def load() -> float:
    """The machine's load over the last minute: a figure taken under a foreign load says less."""
    return round(os.getloadavg()[0], 1)


def median(values: Sequence[float], digits: int = 2) -> float:
    """The median, rounded."""
    return round(statistics.median(values), digits)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Least and greatest."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
