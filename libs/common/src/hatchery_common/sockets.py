"""The kernel's table of TCP sockets: which user holds the other end of a connection within this host (Linux only)."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Address = tuple[str, int]
_ESTABLISHED, _SYN_RECEIVED, _LISTEN = 1, 3, 10
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR, _NLM_F_REQUEST = 4, 20, 2, 1
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
# inet_diag_req_v2 up to its socket id: family, protocol, extensions, padding, states
_REQUEST = struct.Struct("=BBBBI")
_ANSWER = struct.Struct("=BBBB48xIIIII")  # inet_diag_msg: family, state, 2 × timer, socket id, 3 × queues, uid, inode
_ANSWER_S = 0.1  # the kernel answers within the call
_MAPPED = "0000000000000000" + f"{socket.htonl(0xFFFF):08X}"  # an IPv4 address among the IPv6 sockets


@dataclass(frozen=True)
class Holder:
    """Who holds a socket; until a program has accepted it, it belongs to nobody but its listener."""

    uid: int
    accepted: bool


def asked_uid(server: Address, client: Address) -> int | None:
    """The uid of the program that holds the server's end of our connection, in microseconds; None when it cannot be told so.

    The listener is read first: a connection that is not accepted yet afterwards was the listener's all the while.
    """
    return _holder(_ask(server, None), _ask(server, client))


def read_uid(server: Address, client: Address) -> int | None:
    """The same out of the table of all sockets, for kernels without sock_diag: milliseconds, so not within an event loop."""
    return _holder(*_read(server, client))


def _holder(listener: Holder | None, peer: Holder | None) -> int | None:
    if peer is None:
        return None
    if peer.accepted:
        return peer.uid
    return None if listener is None else listener.uid


def _ask(server: Address, client: Address | None) -> Holder | None:
    """One socket, by the kernel's own look-up: microseconds, however many sockets there are."""
    local = ipaddress.ip_address(server[0])
    remote = ipaddress.ip_address(client[0]) if client else ipaddress.ip_address(bytes(len(local.packed)))
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    place = struct.pack("!HH16s16s", server[1], client[1] if client else 0, local.packed, remote.packed)
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + place + struct.pack("=I", 0) + b"\xff" * 8
    head = _MESSAGE.pack(_MESSAGE.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_ANSWER_S)
            netlink.sendto(head + body, (0, 0))
            answer = netlink.recv(8192)
    except OSError:
        return None
    if _MESSAGE.unpack_from(answer)[1] == _NLMSG_ERROR:
        return None
    _, state, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _MESSAGE.size)
    wanted = (_LISTEN,) if client is None else (_ESTABLISHED, _SYN_RECEIVED)
    return Holder(uid, inode != 0) if state in wanted else None


def _read(server: Address, client: Address) -> tuple[Holder | None, Holder | None]:
    """Listener and connection out of the whole table, which lists listeners first: milliseconds."""
    for name, form in (("tcp", _plain), ("tcp6", _wide)):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        local, remote = form(server), form(client)
        anywhere = "0" * (len(local) - 5) + local[-5:]
        rows = [line.split() for line in lines]
        peer = _first(rows, {local}, {remote}, (_ESTABLISHED, _SYN_RECEIVED))
        if peer is not None:
            return _first(rows, {local, anywhere}, None, (_LISTEN,)), peer
    return None, None


def _first(
    rows: Iterable[list[str]], locals_: set[str], remotes: set[str] | None, states: tuple[int, ...]
) -> Holder | None:
    for row in rows:
        if row[1] in locals_ and (remotes is None or row[2] in remotes) and int(row[3], 16) in states:
            return Holder(int(row[7]), row[9] != "0")
    return None


def _plain(address: Address) -> str:
    """As in /proc/net/tcp; an IPv6 address is never found there."""
    return f"{_words(ipaddress.ip_address(address[0]).packed)}:{address[1]:04X}"


def _wide(address: Address) -> str:
    """As in /proc/net/tcp6, where a listener for both families has its IPv4 connections."""
    packed = ipaddress.ip_address(address[0]).packed
    return f"{_MAPPED if len(packed) == 4 else ''}{_words(packed)}:{address[1]:04X}"


def _words(packed: bytes) -> str:
    return "".join(f"{int.from_bytes(packed[at : at + 4], sys.byteorder):08X}" for at in range(0, len(packed), 4))
