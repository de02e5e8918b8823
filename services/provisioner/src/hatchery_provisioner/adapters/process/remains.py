"""What a gateway's user left in the directories that all users of a host share: it would be the next holder's of that user."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

SHARED = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - these are meant
_DEEPEST = 4  # a tenant makes new directories only in such as anybody may write to
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_of(uid: int, places: Sequence[Path] = SHARED) -> None:
    """Remove all that this user owns there, without following a link. Raises OSError for what cannot be removed."""
    for place in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(place, _DIRECTORY)
            try:
                _sweep(descriptor, uid, _DEEPEST)
            finally:
                os.close(descriptor)


def _sweep(directory: int, uid: int, depth: int) -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it went, or became something else, meanwhile
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            is_directory = stat.S_ISDIR(found.st_mode)
            if found.st_uid == uid and is_directory:
                shutil.rmtree(name, dir_fd=directory)
            elif found.st_uid == uid:
                os.unlink(name, dir_fd=directory)
            elif is_directory and found.st_mode & stat.S_IWOTH and depth > 0:
                _enter(directory, name, uid, depth - 1)


def _enter(directory: int, name: str, uid: int, depth: int) -> None:
    descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        _sweep(descriptor, uid, depth)
    finally:
        os.close(descriptor)
