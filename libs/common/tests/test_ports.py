"""Ports for tests: outside of what the kernel gives out, never twice, free again when their owner has died."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hatchery_common.testing import ports
from hatchery_common.testing.ports import NoFreePorts, PortLeases, blocks_below, free_port

_TAKER = """
import os, sys
from hatchery_common.testing.ports import PortLeases, free_port
name, block, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
take = PortLeases([block], name).take if name else free_port
def tell(*numbers):
    os.write(1, (" ".join(map(str, numbers)) + "\\n").encode())  # at once: two processes may share this pipe
tell(*(take() for _ in range(count)))
"""
_WAIT = "sys.stdin.read()"
_LEAVE_A_CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
tell(child.pid)
sys.stdin.read()
"""
_FORK = """
child = os.fork()
tell(*(free_port() for _ in range(count)))
child and os.waitpid(child, 0)
"""


@contextmanager
def taker(
    count: int, name: str = "", block: int = 0, *, then: str = _WAIT
) -> Generator[tuple[subprocess.Popen[str], list[int]]]:
    """Another process that takes ports, and which ones; it ends with the block."""
    command = [sys.executable, "-c", _TAKER + then, name, str(block), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, numbers(process)
        finally:
            process.kill()


def numbers(process: subprocess.Popen[str]) -> list[int]:
    """The next line that it writes."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


@pytest.fixture
def block() -> Generator[int]:
    """A hundred ports of our own, the first at a round number: the place for leases under another name."""
    first = free_port(span=199)
    yield first + -first % 100
    ports.give_back(first, span=199)


@pytest.fixture
def name() -> str:
    """A name for leases that are only this test's."""
    return f"hatchery-test-of-ports-{secrets.token_hex(4)}"


def test_processes_never_get_the_same_port() -> None:
    with taker(150) as (_, first), taker(150) as (_, second), taker(150) as (_, third):
        ours = [free_port() for _ in range(150)]
        assert len({*first, *second, *third, *ours}) == 600


def test_a_forked_child_never_gets_its_parents_ports() -> None:
    with taker(5, then=_FORK) as (process, before):
        assert len({*before, *numbers(process), *numbers(process)}) == 15


def test_ports_lie_where_neither_the_kernel_nor_the_product_looks() -> None:
    given = blocks_below(32_768)
    covered = {port for first in given for port in range(first, first + 100)}
    assert max(covered) < 32_768
    assert not covered & {*range(8800, 9100), 18_789, *range(18_800, 19_100)}
    assert max(blocks_below(20_450)) == 20_300  # the last whole block below
    assert blocks_below(1_024) == given  # no room was left: better these than none


def test_a_port_that_somebody_listens_on_is_not_given(block: int, name: str) -> None:
    with contextlib.ExitStack() as stack:
        for port in range(block, block + 100):
            if port not in (block + 41, block + 43):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        leases = PortLeases([block], name)
        assert [leases.take(), leases.take()] == [block + 41, block + 43]
        with pytest.raises(NoFreePorts):
            leases.take()


def test_a_span_and_its_offsets_are_free_and_given_once(block: int, name: str) -> None:
    leases = PortLeases([block], name)
    assert leases.take([0, 3]) == block
    with socket.create_server(("127.0.0.1", block + 54)):
        first = leases.take([*range(10), 50])
    assert first == block + 5  # before 4 the span would hold what was given, at 4 its offset would be a stranger's
    rest = {leases.take() for _ in range(100 - 2 - 11)}
    assert rest == {*range(block, block + 100)} - {block, block + 3, *range(first, first + 10), first + 50}


def test_of_neighbouring_blocks_all_are_leased_or_none(block: int, name: str) -> None:
    other, ours = PortLeases([block + 100], name), PortLeases([block, block + 100], name)
    other.take()
    with pytest.raises(NoFreePorts):
        ours.take(range(101))
    assert PortLeases([block], name).take() == block


def test_what_is_given_back_is_given_again(block: int, name: str) -> None:
    leases = PortLeases([block], name)
    taken = leases.take(range(100))
    with pytest.raises(NoFreePorts):
        leases.take()
    leases.give_back(range(taken, taken + 100))
    assert leases.take(range(100)) == taken


def test_the_ports_of_a_killed_process_are_free_again(block: int, name: str) -> None:
    leases = PortLeases([block], name)
    with taker(1, name, block) as (process, taken):
        assert taken == [block]
        with pytest.raises(NoFreePorts):
            leases.take()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert leases.take() == block


def test_a_lease_does_not_pass_on_to_programs_that_its_owner_started(block: int, name: str) -> None:
    with taker(1, name, block, then=_LEAVE_A_CHILD) as (process, _):
        [child] = numbers(process)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        os.kill(child, 0)  # it lives
        assert PortLeases([block], name).take() == block
