"""nats-py's client with a short way for busy subscriptions: no queue and task in between, cheaper headers, cheaper acks.

Measured (tests/bench/bench_bus.py): header parsing and the hop through a queue were more than half of the time of consuming.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.client import Client  # noqa: TID251 - part of the wrapper's seam
from nats.protocol.parser import AWAITING_CONTROL_LINE, MAX_CONTROL_LINE_SIZE, Parser  # noqa: TID251 - part of the wrapper's seam

log = structlog.get_logger("hatchery.bus")
_HEADERS = re.compile(r"([^:\r\n]+):[ \t]*([^\r\n]*)")


class Wire:
    """A message as it came."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.headers = headers


class _Parser(Parser):
    """Takes whole messages of direct subscriptions out of the buffer; all else is left to nats-py's parser."""

    def __init__(self, client: DirectClient) -> None:
        super().__init__(client)
        self._client = client

    async def parse(self, data: bytes = b"") -> None:
        if self.state == AWAITING_CONTROL_LINE:
            self.buf.extend(data)
            data = b""
            if self._take_messages(self.buf):
                return
        await super().parse(data)

    def _take_messages(self, buffer: bytearray) -> bool:
        """Hand over what is complete; True when nothing, or only the beginning of one more, is left."""
        client = self._client
        data, size, taken = bytes(buffer), len(buffer), 0
        whole = False  # what is left needs nats-py's parser
        while data.startswith(b"HMSG ", taken):
            line = data.find(b"\r\n", taken)
            if line < 0:
                whole = size - taken < MAX_CONTROL_LINE_SIZE
                break
            parts = data[taken + 5 : line].split()
            receive = client.direct.get(int(parts[1]))
            if receive is None:
                break
            begin = line + 2
            end = begin + int(parts[-1])
            if size < end + 2:
                whole = True
                break
            middle = begin + int(parts[-2])
            taken = end + 2
            reply = parts[2] if len(parts) == 5 else b""
            client.hand_over(receive, parts[0], reply, data[middle:end], data[begin:middle])
        del buffer[:taken]
        return whole or not buffer


class DirectClient(Client):
    """Gives messages of chosen subscriptions to a plain function, within the read loop."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: dict[int, Callable[[Any], None]] = {}
        self._ps = _Parser(self)

    async def subscribe_directly(self, subject: str, receive: Callable[[Any], None]) -> Any:
        """Subscribe; `receive` must be quick and is called in the order of arrival."""

        async def never(_: Any) -> None:
            return

        live = await self.subscribe(subject, cb=never)
        self.direct[live._id] = receive  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - it has no public name
        return live

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        receive = self.direct.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.hand_over(receive, subject, reply, data, headers)

    def hand_over(
        self, receive: Callable[[Any], None], subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Call the receiver; its errors end here, since they would end nats-py's read loop without a word."""
        try:
            receive(Wire(subject.decode(), reply.decode(), data, headers_of(headers) if headers else None))
        except Exception:
            log.exception("bus.receive_failed", subject=subject.decode())

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    def send_soon(self, reply: str, payload: bytes) -> bool:
        """Send a small message with the next flush; False when that is not possible now."""
        queue = self._flush_queue
        if self.is_closed or self.is_draining_pubs or queue is None:
            return False
        command = b"PUB %s  %d\r\n%s\r\n" % (reply.encode(), len(payload), payload)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self.is_connected and queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())
        return True


def headers_of(block: bytes) -> dict[str, str]:
    """A header block with its status line (`NATS/1.0 408 Request Timeout`) as `Status` and `Description`."""
    lines = block.decode("utf-8", "replace").split("\r\n")
    first = lines[0]
    try:
        found = dict([line.split(": ", 1) for line in lines[1:-2]])  # as NATS clients write them; a loop is slower
    except ValueError:
        found = dict(_HEADERS.findall("\n".join(lines[1:])))
    if len(first) > 9:
        status, _, description = first[9:].partition(" ")
        found["Status"] = status
        if description:
            found["Description"] = description.strip()
    return found
