"""What becomes of a message: handled and acknowledged, tried again after a while, or a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from hatchery_common.bus.connection import Connection
from hatchery_common.bus.deadletter import OnDead, bury
from hatchery_common.bus.delivery import Delivery
from hatchery_common.bus.envelope import Placed
from hatchery_common.bus.errors import BusUnavailable
from hatchery_common.bus.listening import Raw
from hatchery_common.bus.publisher import Publisher
from hatchery_common.bus.quarantine import Trial
from hatchery_common.errors import HatcheryError, Retry
from hatchery_common.guard import guarded

log = structlog.get_logger("hatchery.bus")
_TRIAL_S = 0.2  # until a suspect looks again whether its turn has come
_WAITS_A_LINE = 10  # a long wait is said again now and then
Handle = Callable[[Delivery[Any]], Awaitable[None]]


@dataclass(frozen=True)
class ConsumerSettings:
    """How a consumer works; the defaults fit the durables of the topology."""

    outstanding: int = 512  # messages asked for or held at a time; 256 is a tenth slower (tests/bench/bench_bus.py)
    concurrency: int = 64  # handlers running at a time
    ack_wait_s: float = 5.0
    max_deliveries: int = 10
    backoff_s: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0)  # the last one repeats
    dependency_s: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # the last one repeats
    expires_s: float = 5.0
    heartbeat_s: float = 1.0


class Held:
    """A message that was delivered to us and is not acknowledged yet."""

    __slots__ = ("buried", "dead", "delivery", "failures", "farewell", "handle", "place", "raw", "waits")

    def __init__(self, raw: Raw, place: Placed) -> None:
        self.raw = raw
        self.place = place
        self.delivery: Delivery[Any] | None = None
        self.handle: Handle | None = None
        self.farewell: Handle | None = None  # told when it is a dead letter
        self.failures = 0  # counted attempts of ours that failed since it was delivered
        self.waits = 0  # uncounted ones, while a dependency was down
        self.dead: tuple[str, str] | None = None
        self.buried = False  # its dead letter is stored; only the owner of the inbox has not been told yet

    @property
    def attempt(self) -> int:
        """Which delivery the next handling is, with the server's count."""
        return self.place.deliveries + self.failures


class Attempts:
    """Runs one held message once; the single path to acknowledgement and to the dead letters."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        durable: str,
        settings: ConsumerSettings,
        on_dead: OnDead | None,
        trial: Trial | None,
        release: Callable[[Held], None],
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._durable = durable
        self._settings = settings
        self._on_dead = on_dead
        self._trial = trial
        self._release = release

    async def run(self, held: Held) -> float | None:
        """None when the message is settled, else the seconds to wait before the next attempt."""
        try:
            if self._trial is not None and self.is_suspect(held) and self._trial.is_busy:
                return _TRIAL_S
            await self._handle(held)
            if held.dead is not None:
                await self._bury(held, *held.dead)
        except HatcheryError as error:
            return self.judge(held, error)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return self.judge(held, HatcheryError("the handler was cancelled from within"))
        except Exception as error:
            log.exception("bus.handler_failed", **self._about(held))
            return self.judge(held, HatcheryError(f"{type(error).__name__}: {error}"))
        self.settle(held)
        return None

    def is_suspect(self, held: Held) -> bool:
        """Whether it was delivered so often that it may be what kills its process; handle it alone."""
        return held.dead is None and held.attempt > self._settings.max_deliveries

    async def _handle(self, held: Held) -> None:
        if held.dead is not None or held.handle is None or held.delivery is None:
            return
        if not self.is_suspect(held):
            await guarded(held.handle(held.delivery), "a handler")
            return
        if self._trial is not None:
            async with self._trial.of(held.delivery.id) as may_live:
                if may_live:
                    await guarded(held.handle(held.delivery), "a handler")
                    return
        held.dead = ("too_many_deliveries", f"delivered {held.place.deliveries} times without success")

    def judge(self, held: Held, error: HatcheryError) -> float:
        """How long to wait after this error; marks the message dead where waiting does not help."""
        if error.retry is Retry.DEPENDENCY or held.dead is not None:
            held.waits += 1
            if held.waits == 1 or held.waits % _WAITS_A_LINE == 0:
                log.warning("bus.waiting_for_dependency", code=error.code, error=error.message, **self._about(held))
            return _nth(self._settings.dependency_s, held.waits)
        held.failures += 1
        log.warning("bus.attempt_failed", code=error.code, error=error.message, **self._about(held))
        if error.retry is Retry.NEVER or held.attempt > self._settings.max_deliveries:
            held.dead = (str(error.context.get("reason", error.code)), error.message)
            return 0.0
        if held.delivery is not None:
            held.delivery = held.delivery._replace(deliveries=held.attempt)
        return _nth(self._settings.backoff_s, held.failures)

    def settle(self, held: Held) -> None:
        """Acknowledge; an ack that is lost only leads to a redelivery."""
        try:
            self._connection.send_soon(held.raw.reply)
        except BusUnavailable:
            log.debug("bus.ack_not_sent", **self._about(held))
        self._release(held)

    async def _bury(self, held: Held, code: str, reason: str) -> None:
        if not held.buried:  # the server knows a letter again for some minutes only
            deliveries = max(1, held.attempt - 1) if held.failures else held.place.deliveries
            about = {"durable": self._durable, "code": code, "reason": reason}
            await bury(self._publisher, held.raw, held.place, deliveries=deliveries, **about)
            held.buried = True
        headers = held.raw.headers or {}
        if self._on_dead is not None and "ce-id" in headers:
            await self._on_dead(headers["ce-id"], headers.get("ce-type", ""))
        if held.farewell is not None and held.delivery is not None:
            await held.farewell(held.delivery)
        log.error("bus.dead_letter", code=code, reason=reason, **self._about(held))

    def _about(self, held: Held) -> dict[str, Any]:
        about: dict[str, Any] = {"durable": self._durable, "stream": held.place.stream, "sequence": held.place.sequence}
        delivery = held.delivery
        if delivery is not None:
            about |= {
                "message_id": delivery.id,
                "type": delivery.type,
                "tenant": delivery.tenant,
                "attempt": held.attempt,
            }
        return about


def is_being_cancelled() -> bool:
    """Whether the current task was cancelled from outside; else a CancelledError came out of what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _nth(delays: tuple[float, ...], number: int) -> float:
    return delays[min(number, len(delays)) - 1]
