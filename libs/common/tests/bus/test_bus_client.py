"""The short way through nats-py: header blocks of every shape, and messages cut anywhere by the network."""

from __future__ import annotations

from typing import Any

import pytest
from hatchery_common.bus.client import DirectClient, headers_of
from nats.protocol.parser import AWAITING_CONTROL_LINE  # noqa: TID251 - the parser under ours


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nce-id: a: b\r\nEmpty: \r\n\r\n", {"ce-id": "a: b", "Empty": ""}),
        (b"NATS/1.0\r\ntight:x\r\nwide:   y\r\n\r\n", {"tight": "x", "wide": "y"}),
        (b"NATS/1.0\r\nno colon at all\r\nce-id: a\r\n\r\n", {"ce-id": "a"}),
        (b"NATS/1.0\r\nbytes: \xff\r\n\r\n", {"bytes": "\ufffd"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\n\r\n",
            {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": "7"},
        ),
    ],
)
def test_headers_of_every_shape(block: bytes, headers: dict[str, str]):
    assert headers_of(block) == headers


def message(number: int, *, sid: int = 1) -> bytes:
    headers = b"NATS/1.0\r\nce-id: %d\r\n\r\n" % number
    body = b"HMSG 9\r\n" * (number % 3)  # a body may look like the protocol
    return b"HMSG evt.a %d reply.%d %d %d\r\n%s%s\r\n" % (
        sid, number, len(headers), len(headers) + len(body), headers, body,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 7, 40, 64, 100, 1000])
async def test_messages_may_be_cut_anywhere(size: int):
    client = DirectClient()
    seen: list[Any] = []
    slow: list[int] = []
    client.direct[1] = seen.append

    async def by_the_long_way(sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == 1:
            client.hand_over(seen.append, subject, reply, data, headers)
        else:
            slow.append(int(reply.decode().removeprefix("reply.")))

    client._process_msg = by_the_long_way
    stream = b"".join(message(number, sid=2 if number % 5 == 4 else 1) for number in range(20))
    for start in range(0, len(stream), size):
        await client._ps.parse(stream[start : start + size])
    assert client._ps.state == AWAITING_CONTROL_LINE
    assert slow == [4, 9, 14, 19]
    expected = [number for number in range(20) if number % 5 != 4]
    assert [one.reply for one in seen] == [f"reply.{number}" for number in expected]
    assert [one.headers for one in seen] == [{"ce-id": str(number)} for number in expected]
    assert [one.data for one in seen] == [b"HMSG 9\r\n" * (number % 3) for number in expected]
