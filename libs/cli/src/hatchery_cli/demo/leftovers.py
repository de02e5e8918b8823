"""What a stack may have left behind: processes, directories of machines, OpenClaw's lock files."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path

import psutil


def processes_of(directory: Path) -> list[str]:
    """Processes, except ourselves, whose command line or working directory lies in the directory."""
    found: list[str] = []
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter(["pid", "name", "cmdline", "cwd"]):
        info = process.info
        words = " ".join([*(info["cmdline"] or []), info["cwd"] or ""])
        if str(directory) in words and info["pid"] not in own:
            found.append(f"{info['pid']} {' '.join(info['cmdline'] or [info['name']])[:200]}")
    return found


def machine_directories(machines: Path) -> list[str]:
    """Directories of machines that still exist."""
    if not machines.is_dir():
        return []
    return sorted(str(entry) for entry in machines.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def lock_names(machines: Path) -> set[str]:
    """The names that OpenClaw gives to its locks of these machines: a hash of each database's path. Ask before they go."""
    found = {path.resolve() for path in machines.rglob("*.sqlite")}
    found |= {state.resolve() / "state" / "openclaw.sqlite" for state in machines.glob("*/state")}
    return {hashlib.sha256(str(path).encode()).hexdigest()[:8] for path in found}


def lock_files(names: set[str]) -> list[str]:
    """OpenClaw's state locks of these names; they lie outside its own directories (`<tmp>/openclaw-state-locks-<uid>/`)."""
    found: set[Path] = set()
    for place in {Path(tempfile.gettempdir()), Path("/tmp")}:  # noqa: S108 - OpenClaw ignores TMPDIR here
        for directory in place.glob("openclaw-state-locks-*"):
            with contextlib.suppress(OSError):
                found |= {entry for entry in directory.iterdir() if names & set(entry.name.split("."))}
    return sorted(str(entry) for entry in found)
