"""Reads the boot bundle from an inherited pipe or from a file that is gone afterwards."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

from hatchery_controller.domain.bundle import MAX_BUNDLE_BYTES, BundleInvalid

if TYPE_CHECKING:
    from pathlib import Path


async def read_pipe(descriptor: int, deadline: float) -> bytes:
    """Everything up to the end of the pipe, which is then closed. Raises BundleInvalid."""
    received = bytearray()
    try:
        os.set_blocking(descriptor, False)
        async with asyncio.timeout(deadline):
            while piece := await _read_some(descriptor):
                received += piece
                if len(received) > MAX_BUNDLE_BYTES:
                    raise BundleInvalid("bundle is larger than 1 MiB")
    except TimeoutError:
        raise BundleInvalid(f"no whole boot bundle arrived within {deadline:g} s") from None
    except OSError as error:
        raise BundleInvalid(f"the boot pipe cannot be read: {error.strerror}") from None
    finally:
        try:
            os.close(descriptor)
        except OSError:
            pass
    return bytes(received)


async def _read_some(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, 65536)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(descriptor, lambda future=readable: None if future.done() else future.set_result(None))
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)


def read_file(path: Path) -> bytes:
    """The content of a private regular file, which is removed whatever it holds. Raises BundleInvalid."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            path.unlink()
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid not in (0, os.getuid()):
                raise BundleInvalid("the boot file is not a private regular file of ours (mode 0400)")
            if info.st_size > MAX_BUNDLE_BYTES:
                raise BundleInvalid("bundle is larger than 1 MiB")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BundleInvalid(f"the boot file cannot be read and removed: {error.strerror}") from None
