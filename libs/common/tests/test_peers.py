"""Who is at the other end of a connection, as the kernel tells it: real sockets of real users."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hatchery_common import peers
from hatchery_common.peers import StrangerAnswers, before_sending, connect, own_uid
from hatchery_common.sockets import Address, asked_uid, read_uid
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server, json_response
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.stranger import POSSIBLE, UID, stranger

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells users of sockets on Linux alone")
needs_root = pytest.mark.skipif(not POSSIBLE, reason="only root can be another user")
SECRET = {"x-hatchery-secret": "hush"}


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def has_ipv6() -> bool:
    try:
        listening("::1").close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("look_up", [asked_uid, read_uid])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_our_own_listener_is_ours_before_and_after_it_accepts(
    look_up: Callable[[Address, Address], int | None], host: str
) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    to = "::1" if host == "::1" else "127.0.0.1"
    with listening(host) as listener, socket.create_connection((to, listener.getsockname()[1])) as ours:
        server, client = ours.getpeername()[:2], ours.getsockname()[:2]
        assert look_up(server, client) == os.geteuid()
        accepted = listener.accept()[0]
        assert look_up(server, client) == os.geteuid()
        accepted.close()
    assert look_up(server, client) is None


@needs_root
@pytest.mark.parametrize("look_up", [asked_uid, read_uid])
def test_a_stranger_is_known_although_the_rightful_owner_listens_again(
    look_up: Callable[[Address, Address], int | None],
) -> None:
    """He accepts, leaves the port, and the machine comes back: the connection is still his."""
    port = free_port()
    with stranger([port]) as he, socket.create_connection(("127.0.0.1", port)) as ours:
        server, client = ours.getpeername(), ours.getsockname()
        assert look_up(server, client) == UID
        he.leave()
        with listening(port=port):
            assert look_up(server, client) == UID


async def test_a_request_goes_to_the_expected_user_over_new_and_kept_connections() -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return json_response(200, {})

    server = Server(handle)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    expected = own_uid()
    assert expected is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            assert (await client.get(url, headers=SECRET, extensions=before_sending(expected))).status_code == 200
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(StrangerAnswers) as refused:
            await client.get(url, headers=SECRET, extensions=before_sending(expected + 1))
    assert refused.value.uid == expected
    await server.stop()
    assert len(seen) == 2


async def test_the_check_needs_no_thread_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have taken them all, for long: then nobody could be spoken to."""
    monkeypatch.setattr(peers, "_ASK_S", 0.05)
    release, pool = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    stuck = asyncio.get_running_loop().run_in_executor(None, release.wait)
    with listening() as listener:
        (await connect("127.0.0.1", listener.getsockname()[1], os.geteuid())).close()
    release.set()
    await stuck


async def test_without_sock_diag_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "asked_uid", lambda *_: None)
    with listening() as listener:
        (await connect("127.0.0.1", listener.getsockname()[1], os.geteuid())).close()
        with pytest.raises(StrangerAnswers):
            await connect("127.0.0.1", listener.getsockname()[1], os.geteuid() + 1)


@needs_root
async def test_a_stranger_is_told_nothing() -> None:
    port = free_port()
    with stranger([port]) as he:
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(StrangerAnswers):
                await client.get(f"http://127.0.0.1:{port}", headers=SECRET, extensions=before_sending(os.geteuid()))
        with pytest.raises(StrangerAnswers) as refused:
            await connect("127.0.0.1", port, os.geteuid())
        assert refused.value.uid == UID
        (await connect("127.0.0.1", port, UID)).close()
        assert he.heard() == b""


@needs_root
async def test_without_a_uid_he_would_be_told() -> None:
    """What the tests above would miss if nothing were checked."""
    port = free_port()
    with stranger([port]) as he:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{port}", headers=SECRET, extensions=before_sending(None))
        assert b"x-hatchery-secret: hush" in he.heard().lower()
