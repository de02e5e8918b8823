"""Processes known by pid and by what their command line must hold, so that a reused pid is never mistaken for ours."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def is_ours(pid: int, markers: Sequence[str]) -> bool:
    """Whether this pid lives (not as a zombie) and each marker is a word of its command line, or such a word's file name."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and _has(process.cmdline(), markers)
    except psutil.Error:
        return False


def find_ours(markers: Sequence[str]) -> list[int]:
    """All living processes whose command line holds the markers, our own excepted."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and _has(process.cmdline(), markers):
                found.append(process.pid)
    return found


def _has(words: Sequence[str], markers: Sequence[str]) -> bool:
    known = {*words, *(word.rsplit("/", 1)[-1] for word in words)}
    return all(marker in known for marker in markers)


def read_pid(path: Path) -> int | None:
    """The pid in the first line of a file; None when there is none."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def stop_group(pids: Sequence[int], first: signal.Signals, deadline_s: float) -> list[int]:
    """Signal each process, wait for all, then kill the groups of those that stay; returns the pids that had to be killed."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, first)
    alive = wait_gone(pids, deadline_s)
    for pid in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_gone(alive, 5)
    return alive


def wait_gone(pids: Sequence[int], deadline_s: float) -> list[int]:
    """Wait until these processes have ended; returns those that have not in time."""
    watched: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            watched.append(psutil.Process(pid))
    end = time.monotonic() + deadline_s
    while watched and time.monotonic() < end:
        watched = [one for one in watched if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if watched:
            time.sleep(0.02)
    return [one.pid for one in watched]
