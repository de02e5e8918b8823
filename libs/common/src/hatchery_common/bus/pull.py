"""The standing pull: one inbox, a bounded number of messages asked for or held, asked again at half."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import structlog

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.listening import Listening, Raw

log = structlog.get_logger("hatchery.bus")
_NANO = 1_000_000_000


class StandingPull:
    """Keeps a durable's messages coming; `receive` says whether a message is newly held (and will be released).

    nats-py's fetch stalls on pulls that outlive it and across restarts; here a status message, two missed heartbeats or a
    reconnect only lead to asking again.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        durable: str,
        receive: Callable[[Raw], bool],
        *,
        outstanding: int = 256,
        expires_s: float = 5.0,
        heartbeat_s: float = 1.0,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self.problem: str | None = None
        self._connection = connection
        self._receive = receive
        self._limit = outstanding
        self._expires_s = expires_s
        self._heartbeat_s = heartbeat_s
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = ""
        self._epoch = 0
        self._asked = 0
        self._held = 0
        self._heard = 0.0
        self._pause = 0.0
        self._stopping = False
        self._wake = asyncio.Event()
        self._listening: Listening | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to ask."""
        self._inbox = self._connection.new_inbox()
        self._listening = await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_message)
        self._connection.on_reconnect(self._ask_anew)
        self._task = asyncio.get_running_loop().create_task(self._ask_for_ever())

    async def stop(self) -> None:
        """Stop asking; what is on its way still reaches `receive`."""
        self._stopping = True
        self._connection.forget_reconnect(self._ask_anew)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._listening is not None:
            await self._connection.unsubscribe(self._listening, drain=self._connection.connected)

    def release(self) -> None:
        """One held message is done with."""
        self._held -= 1
        if self._asked + self._held <= self._limit // 2:
            self._wake.set()

    def _ask_anew(self) -> None:
        self._epoch += 1  # what the server still says about earlier requests is not about ours
        self._asked = 0
        self._pause = 0.0
        self._wake.set()

    def _on_message(self, raw: Any) -> None:
        self._heard = time.monotonic()
        if raw.reply:
            self.problem = None
            self._asked = max(0, self._asked - 1)
            if self._receive(raw):
                self._held += 1
            if self._asked + self._held <= self._limit // 2:
                self._wake.set()
        elif raw.subject.endswith(f".{self._epoch}"):
            self._on_status(raw.headers or {})

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers.get("Status")
        if status == "100":
            self.problem = None
            return
        pending = headers.get("Nats-Pending-Messages")
        if status == "408":
            self.problem = None
        else:  # 409 consumer deleted, leader change, shutdown; 503 nobody answers for this durable; 404 and 400
            meaning = headers.get("Description") or _MEANING.get(status or "", "unknown status")
            self.problem = f"durable {self.durable} on {self.stream}: {meaning}"
            self._pause = min(2.0, self._pause * 2 or 0.1)
        self._asked = 0 if pending is None else max(0, self._asked - int(pending))
        self._wake.set()

    async def _ask_for_ever(self) -> None:
        silence = self._heartbeat_s * 2.5
        while True:
            if self._pause:
                await asyncio.sleep(self._pause)
            self._wake.clear()
            if self._asked and time.monotonic() - self._heard > silence and self._connection.connected:
                log.debug("bus.pull.silent", stream=self.stream, durable=self.durable)
                self._ask_anew()
                self._wake.clear()
            await self._ask()
            try:
                async with asyncio.timeout(silence):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _ask(self) -> None:
        wanted = self._limit - self._asked - self._held
        if wanted * 2 < self._limit or not self._connection.connected:
            return
        body = {
            "batch": wanted,
            "expires": int(self._expires_s * _NANO),
            "idle_heartbeat": int(self._heartbeat_s * _NANO),
        }
        self._heard = time.monotonic()
        try:
            await self._connection.publish(self._next, json.dumps(body).encode(), reply=f"{self._inbox}.{self._epoch}")
        except BusUnavailable as error:
            self.problem = str(error)
            self._pause = min(2.0, self._pause * 2 or 0.1)
            return
        self._asked += wanted
        if self.problem is None:
            self._pause = 0.0


_MEANING = {"503": "missing, or its leader is away", "404": "no messages", "400": "bad request"}
