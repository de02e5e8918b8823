"""Listeners: what every HTTP answer of a service passes through."""

import asyncio
import socket

from hatchery_common.service import Listener
from hatchery_common.web import bind


async def test_answers_leave_at_once() -> None:
    """Without TCP_NODELAY an answer in two writes, or a streamed one, waits 40 ms for the client's delayed ACK."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    bound = bind(Listener("test", lambda *_: None, "127.0.0.1", 0))
    async with await asyncio.start_server(accept, sock=bound):
        _, writer = await asyncio.open_connection(*bound.getsockname())
        assert await asyncio.wait_for(accepted, 5)
        writer.close()
        await writer.wait_closed()
