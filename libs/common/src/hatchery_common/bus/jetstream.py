"""The few JetStream API calls that we make, as plain JSON; publishing with acknowledgement and retry."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.errors import BusRefused, BusUnavailable

_ATTEMPT_S = 2.0
NOT_FOUND = frozenset({10014, 10037, 10059})  # consumer, message, stream


@dataclass(frozen=True)
class StreamState:
    """How full a stream is; a last sequence that goes back, or another `created`, means that history was lost."""

    name: str
    created: str
    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    consumers: int
    last_time: datetime | None = None


class JetStream:
    """Asks the JetStream API over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(
        self, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 5.0
    ) -> dict[str, Any]:
        """One API call; raises BusRefused with the server's err_code, BusUnavailable when no one answers."""
        payload = b"" if body is None else json.dumps(body).encode()
        answer = await self._connection.request(f"$JS.API.{method}", payload, timeout_s=timeout_s)
        return _checked(answer.data, method)

    async def find(self, method: str) -> dict[str, Any] | None:
        """An info call that answers None for what does not exist."""
        try:
            return await self.call(method)
        except BusRefused as error:
            if error.err_code in NOT_FOUND:
                return None
            raise

    async def stream_state(self, stream: str) -> StreamState | None:
        """The stream's state, None when it does not exist."""
        info = await self.find(f"STREAM.INFO.{stream}")
        return None if info is None else state_of(info)

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str], *, deadline_s: float = 15.0
    ) -> dict[str, Any]:
        """Publish until acknowledged: no responders, elections and timeouts are retried with jitter till the deadline."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        pause = 0.05
        while True:
            left = end - loop.time()
            try:
                answer = await self._connection.request(
                    subject, payload, headers=headers, timeout_s=max(0.05, min(_ATTEMPT_S, left))
                )
                return _checked(answer.data, subject)
            except BusUnavailable as error:
                if loop.time() + pause >= end:
                    raise BusUnavailable(f"{subject} was not acknowledged within {deadline_s:g} s: {error}") from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter needs no secret
            pause = min(1.0, pause * 2)


def _checked(data: bytes, asked: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(data)
    error = answer.get("error")
    if error is None:
        return answer
    text = f"{asked}: {error.get('description', 'refused')}"
    if error.get("code") == 503:
        raise BusUnavailable(text)
    raise BusRefused(text, err_code=int(error.get("err_code", 0)))


def state_of(info: Mapping[str, Any]) -> StreamState:
    """The state out of a STREAM.INFO answer."""
    state = info["state"]
    messages = int(state["messages"])
    return StreamState(
        name=info["config"]["name"],
        created=info["created"],
        messages=messages,
        bytes=int(state["bytes"]),
        first_sequence=int(state["first_seq"]),
        last_sequence=int(state["last_seq"]),
        consumers=int(state["consumer_count"]),
        last_time=parse_time(state["last_ts"]) if messages else None,
    )


def parse_time(text: str) -> datetime:
    """A server's time stamp, whose nanoseconds Python does not read."""
    head, _, rest = text.partition(".")
    if not rest:
        return datetime.fromisoformat(text)
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    return datetime.fromisoformat(f"{head}.{digits[:6].ljust(6, '0')}{rest[len(digits) :]}")
