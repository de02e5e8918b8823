"""Logs of parts: kept small while they are written, and read from their end."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

_LOG_BYTES = 20 * 1024**2
_TAIL = 600


def rotate(log: Path, limit: int = _LOG_BYTES) -> None:
    """Set aside a log that has grown large (one old one is kept), though a part holds it open.

    It is copied and emptied: parts append, so they go on at its beginning. Lines written in between are lost. Where the
    copy finds no room the log stays as it is.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size <= limit:
            return
        copy = log.with_name(f".{log.name}.1")
        try:
            shutil.copyfile(log, copy)
            copy.chmod(0o600)
            copy.replace(log.with_name(f"{log.name}.1"))
        finally:
            copy.unlink(missing_ok=True)
        os.truncate(log, 0)


def rotate_all(directory: Path) -> None:
    """Do so for every log of this directory."""
    for log in directory.glob("*.log"):
        rotate(log)


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, as a suffix for a sentence."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    kept = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return (": " + " | ".join(kept))[:_TAIL] if kept else ""
