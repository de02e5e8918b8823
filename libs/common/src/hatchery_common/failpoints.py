"""Named points at which a test may kill the process: the proof that each two adjacent steps survive a death between them.

`HATCHERY_FAILPOINTS` holds comma-separated `name` or `name:n`: die at the n-th time that this process reaches the point.
`HATCHERY_FAILPOINTS_FILE` names a file that a test writes while the process runs: the first process that reaches the point it
names takes the file away and dies, so exactly one dies once. Without the variables a call costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_counts: dict[str, int] = {}


def _parse(text: str) -> dict[str, int]:
    pairs = (entry.strip().partition(":") for entry in text.split(",") if entry.strip())
    return {name: int(count or "1") for name, _, count in pairs}


_armed = _parse(os.environ.get("HATCHERY_FAILPOINTS", ""))  # read once: it must cost nothing in production
_file = os.environ.get("HATCHERY_FAILPOINTS_FILE")


def reach(name: str) -> None:
    """Die by SIGKILL here if this point is armed for this time; otherwise do nothing."""
    if _file is not None and _taken(Path(_file), name):
        os.kill(os.getpid(), signal.SIGKILL)
    wanted = _armed.get(name)
    if wanted is None:
        return
    _counts[name] = _counts.get(name, 0) + 1
    if _counts[name] == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(file: Path, name: str) -> bool:
    """Whether the file names this point and we are the one process that took it away."""
    try:
        if file.read_text().strip() != name:
            return False
        file.rename(file.with_suffix(".spent"))
    except FileNotFoundError:
        return False
    return True
