"""Tells a secret only to the program that it is for: a port of this host belongs to whoever binds it first.

While a machine that is a process of this host is down, any local user may bind its port. So before anything is sent over a
new connection the kernel is asked which user holds its other end. Other machines have addresses of their own: no uid, no check.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any, ClassVar

from hatchery_common.errors import DependencyUnavailable
from hatchery_common.sockets import Address, asked_uid, read_uid

_ASK_S = 2.0


class StrangerAnswers(DependencyUnavailable):
    """Another user's program answers at a machine's port; nothing was sent to it. `uid` is None if it could not be told."""

    code: ClassVar[str] = "stranger_answers"

    def __init__(self, port: int, uid: int | None) -> None:
        who = "a program whose user cannot be told" if uid is None else f"a program of user {uid}"
        super().__init__(f"{who} answers at port {port} in place of the machine", port=port)
        self.uid = uid


def own_uid() -> int | None:
    """Our user, as `expected` of what runs under it; None where the kernel does not tell users of sockets."""
    return os.geteuid() if sys.platform == "linux" else None


async def require(server: Address, client: Address, expected: int) -> None:
    """Raises StrangerAnswers unless this user's program holds the server's end of our connection."""
    found = asked_uid(server, client)  # not in a thread: others may have taken them all, and then nobody could be asked
    if found is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_S):
                found = await asyncio.to_thread(read_uid, server, client)
    if found != expected:
        raise StrangerAnswers(server[1], found)


def before_sending(expected: int | None) -> dict[str, Any]:
    """The `extensions` of an httpx request that check each new connection before the request leaves."""
    if expected is None:
        return {}

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        stream = info["return_value"]
        try:
            await require(stream.get_extra_info("server_addr")[:2], stream.get_extra_info("client_addr")[:2], expected)
        except BaseException:
            await stream.aclose()
            raise

    return {"trace": trace}


async def connect(host: str, port: int, expected: int) -> socket.socket:
    """A checked connection, for clients that take a socket; raises StrangerAnswers or OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        await require(connection.getpeername()[:2], connection.getsockname()[:2], expected)
    except BaseException:
        connection.close()
        raise
    return connection
