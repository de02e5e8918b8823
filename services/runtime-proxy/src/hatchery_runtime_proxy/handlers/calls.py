"""One metered model call on its way: the queue to its reader, and what was learnt of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.sse import event_data

from hatchery_runtime_proxy.domain.usage import AnswerScanner

_QUEUE = 64


@dataclass(frozen=True)
class CallLimits:
    """Seconds that model calls are given."""

    reader_s: float = 60.0  # for a reader to take a piece: then it is gone, even if nobody said so
    abandoned_s: float = (
        600.0  # for an answer to end whose reader has left: the provider charges for it, and its counts come last
    )
    closing_s: float = 10.0  # for all of them when this process ends


class Call:
    """A call, until it is recorded; its reader may leave, and is told when it was left behind."""

    def __init__(self, opened: UsageOpened, *, streamed: bool, reader_s: float) -> None:
        self.opened, self._streamed, self._reader_s = opened, streamed, reader_s
        self.left = False
        self.unspent = False  # the provider refused it or never got it
        self.on_leave: Callable[[], None] | None = None
        self._scanner = AnswerScanner(streamed=streamed)
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE)
        self._first_byte_ms: int | None = None

    @property
    def unreadable(self) -> bool:
        """Whether the provider told its counts in a way that we cannot read."""
        return self._scanner.unreadable

    async def pass_on(self, chunk: bytes, now_ms: int) -> None:
        """A piece of the answer: read for its counts, then given to the reader, if it is still there."""
        if self._first_byte_ms is None:
            self._first_byte_ms = max(0, now_ms - self.opened.opened_at_ms)
        self._scanner.feed(chunk)
        await self._offer(chunk)

    async def finish(self) -> None:
        """Nothing follows."""
        await self._offer(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the reader gets."""
        try:
            while (chunk := await self._queue.get()) is not None:
                yield chunk
        finally:
            self._leave()

    async def _offer(self, chunk: bytes | None) -> None:
        if self.left:
            return
        try:
            async with asyncio.timeout(self._reader_s):
                await self._queue.put(chunk)
        except TimeoutError:
            self._leave(self._cut_off())

    def _leave(self, last: bytes | None = None) -> None:
        """The reader is gone, or left behind; then it finds the end when it comes back."""
        first, self.left = not self.left, True
        while not self._queue.empty():  # frees a pump that waits for room
            self._queue.get_nowait()
        if last is not None:
            self._queue.put_nowait(last)
        self._queue.put_nowait(None)
        if first and self.on_leave is not None:
            self.on_leave()

    def _cut_off(self) -> bytes | None:
        """Why a stream has a hole, after what may be half an event; a whole answer with a hole is no JSON, which says enough."""
        if not self._streamed:
            return None
        message = f"nothing of this answer was taken for {self._reader_s:g} s, so the rest of it was dropped"
        error = {"message": message, "type": "server_error", "param": None, "code": "reader_too_slow"}
        return b"\n\ndata: %s\n\n" % event_data({"error": error})

    def outcome(self, status: int) -> UsageOutcome:
        """How the call ended, now that its bytes are over."""
        self._scanner.end()
        good = status == 200 and self._scanner.complete and self._scanner.error is None
        return UsageOutcome.COMPLETED if good else UsageOutcome.FAILED

    def record(self, outcome: UsageOutcome, now_ms: int) -> UsageRecorded:
        """The event that settles it."""
        tokens = self._scanner.tokens
        return UsageRecorded(
            tenant=self.opened.tenant,
            call_id=self.opened.call_id,
            instance_id=self.opened.instance_id,
            machine_id=self.opened.machine_id,
            provider=self.opened.provider,
            model=self.opened.model,
            outcome=outcome,
            input_tokens=tokens.input_tokens if tokens else 0,
            output_tokens=tokens.output_tokens if tokens else 0,
            cached_tokens=tokens.cached_tokens if tokens else 0,
            usage_known=tokens is not None or self.unspent,
            opened_at_ms=self.opened.opened_at_ms,
            ended_at_ms=max(now_ms, self.opened.opened_at_ms),
            first_byte_ms=self._first_byte_ms,
        )
