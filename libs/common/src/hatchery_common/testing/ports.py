"""TCP ports on loopback for tests, leased so that no stranger and no other test gets them while this process lives.

A port of bind(0) lies in the kernel's ephemeral range: any outgoing connection may have it before the test's own server binds
it. Ours lie below that range. They come in blocks of a hundred: a process owns a block for as long as it holds an abstract
Unix socket of that name. The kernel keeps these names where it keeps ports, per network namespace, and frees them when the
process dies.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

_BLOCK = 100
_FIRST = 10_000  # well above what the product uses unless told otherwise (8800 to 9099)
_AVOIDED = range(18_700, 20_300)  # OpenClaw's own default port, and where `hatchery demo` begins to look for its ports
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_FIRST = 32_768  # Linux's default
_NAME = "hatchery-test-ports"


class NoFreePorts(RuntimeError):
    """Other test processes hold, or strangers listen on, whatever would fit."""


class PortLeases:
    """The blocks that this process owns, and which of their ports it has not given out yet."""

    def __init__(self, blocks: Collection[int], name: str = _NAME) -> None:
        self._blocks = frozenset(blocks)  # each by its first port
        self._name = name
        self._owned: dict[int, socket.socket] = {}
        self._free: set[int] = set()
        self._lock = threading.Lock()

    def take(self, offsets: Iterable[int] = (0,)) -> int:
        """A port at which `port + offset` is free and now ours, for every offset; raises NoFreePorts."""
        wanted = sorted(set(offsets))
        with self._lock:
            if (port := self._first_fit(self._free, wanted)) is not None:
                return port
            for run in self._runs(wanted[-1] // _BLOCK + 1):
                # What does not fit here stays ours: it serves later, smaller wishes.
                if self._own(run) and (port := self._first_fit(self._ports(run), wanted)) is not None:
                    return port
        raise NoFreePorts(
            f"no {len(wanted)} free ports in a span of {wanted[-1] + 1}: end other test runs of this machine"
        )

    def give_back(self, ports: Iterable[int]) -> None:
        """Let later calls of this process have these ports again."""
        with self._lock:
            self._free |= {port for port in ports if port - port % _BLOCK in self._owned}

    def forget(self) -> None:
        """Own nothing: what a forked child begins with, for its parent goes on using the ports."""
        for held in self._owned.values():
            held.close()
        self._owned, self._free, self._lock = {}, set(), threading.Lock()

    def _first_fit(self, starts: Iterable[int], offsets: list[int]) -> int | None:
        for port in sorted(starts):
            span = {port + offset for offset in offsets}
            if span <= self._free and all(map(is_free, span)):
                self._free -= span
                return port
        return None

    def _runs(self, count: int) -> list[list[int]]:
        """Every place of so many neighbouring blocks, in an order of chance: parallel runs seldom meet."""
        runs = [[first + number * _BLOCK for number in range(count)] for first in self._blocks]
        possible = [run for run in runs if self._blocks.issuperset(run)]
        secrets.SystemRandom().shuffle(possible)
        return possible

    def _own(self, run: list[int]) -> bool:
        """Lease these blocks, all or none; those that are ours already have no room for what is wanted."""
        held: dict[int, socket.socket] = {}
        for block in run:
            name = None if block in self._owned else _bound(f"\0{self._name}-{block}")
            if name is None:
                for one in held.values():
                    one.close()
                return False
            held[block] = name
        self._owned |= held
        self._free.update(self._ports(run))
        return True

    @staticmethod
    def _ports(run: list[int]) -> list[int]:
        return [port for block in run for port in range(block, block + _BLOCK)]


def blocks_below(ephemeral_first: int) -> list[int]:
    """The blocks for tests, by their first ports, when the kernel gives out ports from this one on by itself."""
    if ephemeral_first < _FIRST + 5_000:  # somebody moved the range down and left us no room: the leases still hold
        ephemeral_first = _EPHEMERAL_FIRST
    starts = range(_FIRST, ephemeral_first - _BLOCK + 1, _BLOCK)
    return [first for first in starts if first not in _AVOIDED]


def is_free(port: int) -> bool:
    """Whether nobody uses this port of loopback now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _bound(name: str) -> socket.socket | None:
    """A socket that holds the name, closed in programs that we start; None when another process has the name."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(name)
    except OSError as error:
        holder.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return holder


def _ephemeral_first() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except OSError:
        return _EPHEMERAL_FIRST


_LEASES = PortLeases(blocks_below(_ephemeral_first()))
os.register_at_fork(after_in_child=_LEASES.forget)


def free_port(span: int = 1, also: Collection[int] = ()) -> int:
    """A port that, with the `span - 1` after it and those at the offsets `also`, belongs to this process until it ends."""
    return _LEASES.take([*range(span), *also])


def give_back(port: int, span: int = 1, also: Collection[int] = ()) -> None:
    """End a lease of `free_port` early, when everything that listened there has ended."""
    _LEASES.give_back(port + offset for offset in [*range(span), *also])
