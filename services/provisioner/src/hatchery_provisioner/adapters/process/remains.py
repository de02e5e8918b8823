"""What a gateway's user left in the directories that all users of a host share: it would be the next holder's of that user."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hatchery_provisioner.adapters.process.removal import DIRECTORY, remove

SHARED = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - these are meant
_DEEPEST = 4  # a tenant makes new directories only in such as anybody may write to


def remove_of(uid: int, places: Sequence[Path] = SHARED) -> None:
    """Remove all that this user owns there, without following a link. Raises OSError for what cannot be removed.

    What is not known to be this user's is no hindrance, whatever it answers: a stranger's mount refuses even root.
    """
    for place in places:
        _sweep(place, None, uid, _DEEPEST)


def _sweep(place: str | Path, parent: int | None, uid: int, depth: int) -> None:
    """Look through a directory that is not this user's; one that cannot be read holds nothing that we could see."""
    try:
        directory = os.open(place, DIRECTORY, dir_fd=parent)
    except OSError:
        return
    try:
        for name in _names(directory):
            _judge(directory, name, uid, depth)
    finally:
        os.close(directory)


def _names(directory: int) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _judge(directory: int, name: str, uid: int, depth: int) -> None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return
    if found.st_uid == uid:
        remove(name, dir_fd=directory)
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH and depth > 0:
        _sweep(name, directory, uid, depth - 1)
