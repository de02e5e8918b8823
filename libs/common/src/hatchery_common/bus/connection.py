"""One connection to the server, the only place that touches nats-py: it reconnects for ever and reopens when it is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog
from nats import errors as nats_errors  # noqa: TID251 - this module is the wrapper's seam

from hatchery_common.bus.client import DirectClient
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.listening import HIDDEN, Listening, Listenings, Raw, Receive
from hatchery_common.bus.violations import Violations
from hatchery_common.errors import InvalidInput, Refused

log = structlog.get_logger("hatchery.bus")
_LOST_AFTER_TIMEOUTS = 3


class NoResponders(BusUnavailable):
    """Nobody listens on that subject now."""

    code = "no_responders"


class Connection:
    """The connection of one service (its nkey, its inbox prefix); every wait has a deadline."""

    def __init__(self, url: str, name: str, seed: str | None = None, *, ask_again_s: float = 10.0) -> None:
        self.url = url
        self.name = name
        self._seed = seed
        self._client = DirectClient()
        self._violations = Violations(name)
        self._listening = Listenings(self._violations)
        self._reconnected: list[Callable[[], None]] = []
        self._closing = False
        self._down_since: float | None = None
        self._last_error = ""
        self.session = 0  # grows whenever the connection is lost: what the server knew of us is forgotten then
        self._refused: asyncio.Future[str] | None = None
        self._timeouts = 0
        self._checking = False
        self._ask_again_s = ask_again_s
        self._asking_again = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, timeout_s: float = 10.0) -> None:
        """Connect; raises Refused when the server does not know the key, BusUnavailable after the deadline."""
        self._refused = asyncio.get_running_loop().create_future()
        connecting = asyncio.ensure_future(self._connect(self._client))
        try:
            await asyncio.wait({connecting, self._refused}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            refused, self._refused = self._refused, None
            if connecting.done():
                return await connecting
            if refused.done():
                hint = "render the server's authorization again: hatchery bus config"
                raise Refused(f"the bus does not accept {self.name}: {refused.result()}", hint=hint)
            raise BusUnavailable(f"no bus at {self.url} within {timeout_s:g} s: {self._last_error or 'no answer'}")
        except BaseException:  # a cancellation, too: what is not handed over is not left connecting
            self._refused = None
            while not connecting.done():  # Python 3.11 loses a cancellation that meets the end of a dial
                connecting.cancel()
                await asyncio.wait({connecting}, timeout=0.3)
            await self._quiet(self._client)
            raise

    async def _connect(self, client: DirectClient) -> None:
        await client.connect(
            self.url,
            name=self.name,
            nkeys_seed_str=self._seed,
            inbox_prefix=f"_INBOX_{self.name}",
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # pyright: ignore[reportArgumentType] - seconds; 2 s by default even after a first refused dial
            connect_timeout=2,
            ping_interval=10,
            flush_timeout=5,
            skip_subject_validation=True,  # subjects are made of checked tokens
        )

    async def close(self) -> None:
        """Flush what is pending and close for good."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._client.is_connected:
            try:
                await self._client.flush(2)
            except HIDDEN:
                log.debug("bus.close.flush_incomplete", service=self.name)
        await self._shut(self._client)

    async def _shut(self, client: DirectClient) -> None:
        try:
            await asyncio.wait_for(client.close(), 2)
        except (*HIDDEN, AssertionError):  # nats-py asserts on a client that never came to connect
            log.debug("bus.close.incomplete", service=self.name)

    @property
    def connected(self) -> bool:
        """Whether the server can be spoken to now."""
        return self._client.is_connected

    @property
    def violations(self) -> int:
        """How often the server refused a subject, for probes."""
        return self._violations.count

    def problem(self) -> str | None:
        """What is wrong with this connection, in one sentence."""
        if not self.connected:
            seconds = 0.0 if self._down_since is None else time.monotonic() - self._down_since
            return f"not connected to the bus for {seconds:.0f} s: {self._last_error or 'connection lost'}"
        return self._violations.problem()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call this after each reconnect: what happened in between was not heard."""
        self._reconnected.append(callback)

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        """Undo on_reconnect."""
        if callback in self._reconnected:
            self._reconnected.remove(callback)

    def new_inbox(self) -> str:
        """A subject of our own that no one else listens on."""
        return self._client.new_inbox()

    async def publish(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send without waiting for an answer; buffered while reconnecting."""
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except nats_errors.MaxPayloadError as error:
            raise InvalidInput(f"a message of {len(payload)} bytes is larger than the bus takes") from error
        except HIDDEN as error:
            raise BusUnavailable(f"cannot send to {subject}: {error or type(error).__name__}") from error

    async def answer(self, reply: str, payload: bytes, *, session: int, headers: dict[str, str] | None = None) -> None:
        """Answer a request that came in that session; nothing is sent when the session is over.

        Its asker has failed by then, and the server permits answers only to what it delivered on this very connection
        (`allow_responses`): sent late, the answer would count as a missing right.
        """
        if session != self.session or not self.connected:
            log.info("bus.answer_dropped", service=self.name, reply=reply)
            return
        await self.publish(reply, payload, headers=headers)

    def send_soon(self, reply: str, payload: bytes = b"") -> None:
        """Send an acknowledgement or the like with the next flush; raises BusUnavailable when there is no client."""
        if not self._client.send_soon(reply, payload):
            raise BusUnavailable("the connection is closed")

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, timeout_s: float = 2.0
    ) -> Raw:
        """Send and wait for the one answer; NoResponders at once when nobody listens, BusUnavailable after the deadline."""
        try:
            answer = await self._client.request(subject, payload, timeout=timeout_s, headers=headers)
        except nats_errors.NoRespondersError as error:
            raise NoResponders(f"nobody answers {subject}") from error
        except nats_errors.MaxPayloadError as error:
            raise InvalidInput(f"a message of {len(payload)} bytes is larger than the bus takes") from error
        except (TimeoutError, nats_errors.TimeoutError) as error:
            self._count_timeout()
            raise BusUnavailable(f"no answer from {subject} within {timeout_s:g} s") from error
        except HIDDEN as error:
            raise BusUnavailable(f"cannot ask {subject}: {error or type(error).__name__}") from error
        self._timeouts = 0
        return answer

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Listening:
        """Listen on a subject; the callback must be an `async def`."""
        return await self._listen(Listening(subject, queue, receive, None))

    async def subscribe_directly(self, subject: str, receive: Callable[[Any], None]) -> Listening:
        """Listen by a plain quick function that is called within the read loop."""
        return await self._listen(Listening(subject, "", None, receive))

    async def _listen(self, listening: Listening) -> Listening:
        try:
            await self._listening.add(listening, self._client)
        except HIDDEN as error:
            raise BusUnavailable(f"cannot listen on {listening.subject}: {error or type(error).__name__}") from error
        return listening

    async def unsubscribe(self, listening: Listening, *, drain: bool = False) -> None:
        """Stop listening, with `drain` only after what is on its way has been received."""
        self._listening.forget(listening)
        await (listening.drain() if drain else listening.stop())

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Wait until the server has seen everything sent so far."""
        try:
            await asyncio.wait_for(self._client.flush(), timeout_s)
        except HIDDEN as error:
            raise BusUnavailable(f"the bus did not answer a ping within {timeout_s:g} s") from error

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if self._violations.note(text):
            log.error("bus.permission_violation", service=self.name, error=text)
            if not self._asking_again and self._listening.refused():
                self._asking_again = True
                self._spawn(self._ask_again())
        elif text != self._last_error:  # a dead server fails five dials a second: say each reason once
            log.warning("bus.error", service=self.name, error=text)
        self._last_error = text
        if "authorization violation" in text.lower() and self._refused is not None and not self._refused.done():
            self._refused.set_result(text.removeprefix("nats: "))

    async def _ask_again(self) -> None:
        """Subscribe again to what was refused, until it is granted, as after a reload of the server's rights."""
        while self._listening.refused():
            await asyncio.sleep(self._ask_again_s)
            if self.connected:
                await self._listening.ask_again(self._client)
        self._asking_again = False

    async def _on_disconnected(self) -> None:
        self.session += 1
        self._violations.forget()
        if self._down_since is None:
            self._down_since = time.monotonic()

    async def _on_reconnected(self) -> None:
        self._down_since = None
        self._last_error = ""
        self._timeouts = 0
        log.info("bus.reconnected", service=self.name)
        for callback in list(self._reconnected):
            callback()

    async def _on_closed(self) -> None:
        # nats-py closes for good on server errors such as a revoked key: we open another client instead of dying quietly
        if not self._closing and self._refused is None:
            self._spawn(self._reopen())

    def _count_timeout(self) -> None:
        self._timeouts += 1
        if self._timeouts >= _LOST_AFTER_TIMEOUTS and self.connected and not self._checking:
            self._checking = True
            self._spawn(self._check_answers())

    async def _check_answers(self) -> None:
        """nats-py may lose the inbox of its requests (nats.py #667): if the server pings but answers nothing, start afresh."""
        try:
            await self.flush()
            await self._client.request("$JS.API.INFO", b"", timeout=2)
        except BusUnavailable:
            return  # the server itself is away or slow; the next timeout asks again
        except HIDDEN:
            log.warning("bus.answers_lost", service=self.name)
            await self._reopen()
        finally:
            self._checking = False
        self._timeouts = 0

    async def _reopen(self) -> None:
        await self._on_disconnected()
        if not self._client.is_closed:
            await self._quiet(self._client)
        while True:
            if await self._reopened():
                break
            await asyncio.sleep(0.5)
        await self._on_reconnected()

    async def _reopened(self) -> bool:
        self._client = DirectClient()
        try:
            await self._connect(self._client)
            await self._listening.attach_all(self._client)
        except HIDDEN as error:
            log.warning("bus.reopen_failed", service=self.name, error=str(error) or type(error).__name__)
            await self._quiet(self._client)  # half attached, it would go on to hand messages over beside the next one
            return False
        return True

    async def _quiet(self, client: DirectClient) -> None:
        closing, self._closing = self._closing, True
        await self._shut(client)
        self._closing = closing

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
