"""Lanes: items of one key run in order, different keys run side by side, and a failing head waits without a worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """`run` handles a lane's first item: None when it is done, else the seconds after which to run it again."""

    def __init__(self, run: Callable[[T], Awaitable[float | None]], *, concurrency: int = 64) -> None:
        self._run = run
        self._concurrency = concurrency
        self._lanes: dict[str, list[T]] = {}
        self._ready: deque[str] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._parked: dict[str, asyncio.TimerHandle] = {}
        self._nudged = False
        self._busy = 0
        self._quiet = asyncio.Event()
        self._stopping = False

    def put(self, key: str, item: T) -> None:
        """Add an item at the end of its lane."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.append(item)
            return
        self._lanes[key] = [item]
        self._make_ready(key)

    async def stop(self, deadline_s: float) -> list[T]:
        """Let running items end, start no others, cancel at the deadline; returns the items that are not done."""
        self._stopping = True
        for timer in self._parked.values():
            timer.cancel()
        if self._busy:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), deadline_s)
            except TimeoutError:
                pass
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=1.0)
        rest = [item for lane in self._lanes.values() for item in lane]
        self._lanes.clear()
        return rest

    def _make_ready(self, key: str) -> None:
        self._parked.pop(key, None)
        self._ready.append(key)
        self._nudge()

    def _nudge(self) -> None:
        if not self._nudged:
            self._nudged = True
            asyncio.get_running_loop().call_soon(self._wake_one)

    def _wake_one(self) -> None:
        """Wake one worker a turn of the loop: quick handlers are all run by the first, slow ones by as many as needed."""
        self._nudged = False
        if not self._ready or self._stopping:
            return
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                self._nudge()
                return
        if len(self._workers) < self._concurrency:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
            self._nudge()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            if not self._ready:
                idle: asyncio.Future[None] = loop.create_future()
                self._idle.append(idle)
                await idle
                continue
            await self._advance(self._ready.popleft(), loop)

    async def _advance(self, key: str, loop: asyncio.AbstractEventLoop) -> None:
        lane = self._lanes[key]
        self._busy += 1
        try:
            delay = await self._run(lane[0])
        finally:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()
        if delay is not None:
            if not self._stopping:
                self._parked[key] = loop.call_later(delay, self._make_ready, key)
            return
        if len(lane) == 1:
            del self._lanes[key]
            return
        del lane[0]
        if not self._stopping:
            self._ready.append(key)
