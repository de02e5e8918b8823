"""The intake of a durable: pulls, decodes, keeps what is held alive on the server, and gives it back when stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from hatchery_common.bus.attempts import ConsumerSettings, Held
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.envelope import decode, placed
from hatchery_common.bus.errors import BusUnavailable, UnreadableMessage
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.pull import StandingPull
from hatchery_common.bus.registry import Registry

log = structlog.get_logger("hatchery.bus")


class Intake:
    """What lanes and batches share: the pull, the set of held messages and the sweeper that says `in progress`."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        stream: str,
        durable: str,
        settings: ConsumerSettings,
        *,
        outstanding: int,
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._sweep_s = settings.ack_wait_s / 2
        self._held: dict[int, Held] = {}
        self._closed = False
        self._sweeper: asyncio.Task[None] | None = None
        self.pull = StandingPull(
            connection,
            stream,
            durable,
            self._receive,
            outstanding=outstanding,
            expires_s=settings.expires_s,
            heartbeat_s=settings.heartbeat_s,
        )

    def accept(self, held: Held) -> None:
        """Where a newly held message goes."""
        raise NotImplementedError

    async def start(self) -> None:
        """Begin to pull."""
        await self.pull.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """Stop pulling; what arrives from now on is given back at once."""
        self._closed = True
        await self.pull.stop()

    async def give_back(self, rest: Iterable[Held]) -> None:
        """Hand unfinished messages back to the server, to be delivered again at once, and end."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for number, held in enumerate(rest):
            self._say(held, b"-NAK")
            self._held.pop(held.place.sequence, None)
            if number == 0:
                # the server offers the first one to our last pull, finds no one there and puts it behind the others:
                # only once it has done so do they keep their order
                await self._let_the_server_notice()

    def release(self, held: Held) -> None:
        """A held message is settled."""
        self._held.pop(held.place.sequence, None)
        self.pull.release()

    @property
    def problem(self) -> str | None:
        """What keeps this durable from being worked on, in one sentence."""
        return self.pull.problem

    def held(self) -> list[Held]:
        """All messages held now."""
        return list(self._held.values())

    def _receive(self, raw: Raw) -> bool:
        place = placed(raw.reply)
        known = self._held.get(place.sequence)
        if known is not None:
            # Delivered again while we still have it, as after a long disconnection: one copy is enough. Nothing was tried
            # meanwhile, so the count of deliveries stays.
            known.raw, known.place = raw, place._replace(deliveries=known.place.deliveries)
            return False
        held = Held(raw, place)
        try:
            held.delivery = decode(raw, self._registry, place)
        except UnreadableMessage as error:
            held.dead = (str(error.context.get("reason", error.code)), error.message)
        if not self._closed:
            self.accept(held)
        self._held[place.sequence] = held
        return True

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            if not self._connection.connected:
                continue  # each word would wait in memory for the next connection, which has no use for it
            for held in self.held():
                self._say(held, b"+WPI")

    async def _let_the_server_notice(self) -> None:
        try:
            await self._connection.flush()
        except BusUnavailable:
            return
        await asyncio.sleep(0.02)

    def _say(self, held: Held, word: bytes) -> None:
        try:
            self._connection.send_soon(held.raw.reply, word)
        except BusUnavailable:
            log.debug("bus.word_not_sent", word=word.decode(), sequence=held.place.sequence)
