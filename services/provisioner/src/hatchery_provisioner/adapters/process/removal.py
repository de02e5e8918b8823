"""Removes trees that tenants made: of any depth, with few open files, and never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove(name: str | Path, *, dir_fd: int | None = None) -> None:
    """Remove a file or a whole tree; what vanishes meanwhile is gone, too. Raises OSError for what cannot be removed."""
    while True:
        try:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        with contextlib.suppress(FileNotFoundError):  # it, or something below it, went meanwhile: look again
            if stat.S_ISDIR(found.st_mode):
                _empty(name, dir_fd)
                os.rmdir(name, dir_fd=dir_fd)
            else:
                os.unlink(name, dir_fd=dir_fd)
            return


def _empty(name: str | Path, dir_fd: int | None) -> None:
    """Go down and up again by hand: neither the stack nor the number of open files grows with the depth."""
    here = os.open(name, DIRECTORY, dir_fd=dir_fd)
    above: list[tuple[tuple[int, int], list[str]]] = []  # of each directory on the way: which it is, what is left in it
    try:
        left = _unlink_files(here)
        while left or above:
            if left:
                below = os.open(left[-1], DIRECTORY, dir_fd=here)
                above.append((_identity(here), left))
                os.close(here)
                here = below
                left = _unlink_files(here)
                continue
            identity, left = above.pop()
            here = _back(here, identity)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(left.pop(), dir_fd=here)
    finally:
        os.close(here)


def _back(here: int, expected: tuple[int, int]) -> int:
    """The directory above, which must be the one that we came from: this one may have been moved meanwhile."""
    parent = os.open("..", DIRECTORY, dir_fd=here)
    if _identity(parent) != expected:
        os.close(parent)
        raise OSError(errno.ESTALE, "a directory was moved while it was being removed")
    os.close(here)
    return parent


def _identity(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino


def _unlink_files(directory: int) -> list[str]:
    """Remove all but directories; returns their names."""
    with os.scandir(directory) as found:
        entries = list(found)
    directories: list[str] = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=directory)
    return directories
