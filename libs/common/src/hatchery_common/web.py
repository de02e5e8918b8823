"""HTTP listeners: uvicorn on sockets that we bind, in a guard that keeps its SystemExit from ending the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from hatchery_common.errors import SetupError
from hatchery_common.guard import ServiceFailed, guarded
from hatchery_common.service import Listener

_GRACE_S = 5
_TICK_S = 1.0


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its signal handlers (the runner owns signals) and with a slower tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        """Tick for the Date header only: ten times a second for each of eight listeners was half of our idle CPU."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._ending.wait()

    def end(self) -> None:
        """Accept nothing more and let requests in flight end."""
        self.should_exit = True
        self._ending.set()


def bind(listener: Listener) -> socket.socket:
    """A listening socket on the listener's address; raises SetupError naming the port when it is taken."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for a delayed ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((listener.host, listener.port))
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise SetupError(
            f"{listener.name} cannot listen on {listener.host}:{listener.port}: {error.strerror}",
            hint="stop what uses the port, or choose another one",
        ) from error
    bound.setblocking(False)
    return bound


@asynccontextmanager
async def serving(listener: Listener) -> AsyncGenerator[asyncio.Task[None]]:
    """Serve the listener's application; on leaving, requests in flight get 5 s to end. The task fails with ServiceFailed."""
    bound = bind(listener)
    config = uvicorn.Config(
        listener.app,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _EmbeddedServer(config)
    task = asyncio.create_task(guarded(server.serve(sockets=[bound]), listener.name), name=f"http-{listener.name}")
    try:
        await _started(server, task)
        yield task
    finally:
        server.end()
        with contextlib.suppress(TimeoutError, ServiceFailed):
            async with asyncio.timeout(_GRACE_S + 2):
                await asyncio.wait([task])
        if not task.done():
            task.cancel()
        bound.close()


async def _started(server: Any, task: asyncio.Task[None]) -> None:
    """Wait until uvicorn accepts, at most 10 s."""
    async with asyncio.timeout(10):
        while not server.started:
            if task.done():
                await task
                raise ServiceFailed("the listener ended before it accepted a request")
            await asyncio.sleep(0.005)
