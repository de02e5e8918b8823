"""Machines belong to tenants: one that never ends an answer, or breaks it off, costs neither memory, nor time, nor a place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
from hatchery_common.contracts.gateways import PROBE, ProbeRequest, ProbeStage
from hatchery_common.testing.fake_gateway.wire import Request, Response, Server
from hatchery_runtime_proxy.adapters.controller import HttpControllers
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.handlers.probe import DEADLINE_S, machine_of, probe_gateway
from hatchery_runtime_proxy.ports import ControllerUnreachable, Gateways, GatewayTimeout, Hello, Identity, Machine
from proxy_stage import ANN, Proxy
from structlog.testing import capture_logs

ASKED = {"model": "openclaw", "input": "hi", "stream": True}
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CREATED = b"event: response.created\ndata: {}\n\n"


class Talker:
    """Answers everything with one status and a body that never ends."""

    def __init__(self, status: int, piece: bytes, pause_s: float) -> None:
        self.status, self.piece, self.pause_s = status, piece, pause_s
        self.sent = 0

    async def handle(self, request: Request) -> Response:
        return Response(self.status, self._body(), {"content-type": "text/plain"})

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            self.sent += len(self.piece)
            yield self.piece
            await asyncio.sleep(self.pause_s)


ENDLESS = pytest.mark.parametrize(("piece", "pause_s"), [(b"x" * 65_536, 0.0), (b"x", 1.0)], ids=["fast", "slow"])


@asynccontextmanager
async def talking(proxy: Proxy, talker: Talker) -> AsyncGenerator[Machine]:
    server = Server(talker.handle)
    yield machine_of(proxy.route(endpoint=f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"))
    await server.stop()


@asynccontextmanager
async def raw(proxy: Proxy, says: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncGenerator[Machine]:
    """A machine that hears a request's head and then says these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await says(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield machine_of(proxy.route(endpoint=f"http://127.0.0.1:{port}"))
    server.close()


@ENDLESS
async def test_ready_is_a_status_and_its_body_is_nobodys_business(proxy: Proxy, piece: bytes, pause_s: float) -> None:
    talker = Talker(200, piece, pause_s)
    async with talking(proxy, talker) as machine:
        async with asyncio.timeout(1):
            assert await proxy.gateways.ready(machine)
        assert talker.sent < 16 * 1024 * 1024


async def test_a_head_that_drips_is_late_as_a_whole(proxy: Proxy) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.5)

    async with raw(proxy, drip) as machine:
        began = time.monotonic()
        with pytest.raises(GatewayTimeout):
            await proxy.gateways.ready(machine)
        assert time.monotonic() - began < 3


async def test_the_probe_answers_before_its_caller_gives_up(proxy: Proxy) -> None:
    class Slow:
        async def ready(self, machine: Machine) -> bool:
            return True

        async def hello(self, machine: Machine, identity: Identity) -> Hello:
            await asyncio.sleep(30)
            raise AssertionError("too late")

    asked = ProbeRequest(tenant=ANN, instance_id="ins_ann", machine_id="mch_ann", route_version=1)
    gateways = cast("Gateways", Slow())
    async with asyncio.timeout(2):
        answer = await probe_gateway(asked, table=proxy.table, gateways=gateways, deadline_s=0.2)
    assert PROBE.timeout_ms / 1000 > DEADLINE_S
    assert (answer.ok, answer.stage) == (False, ProbeStage.HELLO)
    assert "in time" in (answer.detail or "")


@ENDLESS
async def test_a_refusal_that_never_ends_is_cut(proxy: Proxy, piece: bytes, pause_s: float) -> None:
    talker = Talker(500, piece, pause_s)
    async with talking(proxy, talker), asyncio.timeout(5):
        answer = await proxy.runtime.post("/v1/responses", json=ASKED, headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_error")
    assert "status 500: x" in answer.json()["error"]
    assert len(answer.content) < 1000
    assert talker.sent < 16 * 1024 * 1024


async def test_a_refusal_that_nests_too_deep_is_text(proxy: Proxy) -> None:
    async with talking(proxy, Talker(500, b"[" * 65_536, 0.0)):
        answer = await proxy.runtime.post("/v1/responses", json=ASKED, headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_error")


@pytest.mark.parametrize("half", [b"", b"event: resp", b"event: response.created\n"])
async def test_a_connection_that_breaks_in_the_middle_of_a_piece_is_named(proxy: Proxy, half: bytes) -> None:
    async def break_off(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"%x\r\n%s\r\n" % (len(CREATED), CREATED))
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(b"400\r\n" + half)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.transport.abort()

    with capture_logs() as logs:
        async with (
            raw(proxy, break_off),
            proxy.runtime.stream("POST", "/v1/responses", json=ASKED, headers=proxy.headers()) as answer,
        ):
            lines = [line async for line in answer.aiter_lines()]
    assert lines[0] == "event: response.created"
    assert lines[-4:-2] == ["", "event: error"], "what was half said does not swallow it"
    assert '"gateway_connection_lost"' in lines[-2]
    assert not logs, "a machine that dies is no defect of ours"


async def test_a_refusal_that_breaks_off_is_a_gateway_that_cannot_be_reached(proxy: Proxy) -> None:
    async def break_off(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    async with raw(proxy, break_off):
        answer = await proxy.runtime.post("/v1/responses", json=ASKED, headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_connection_lost")


async def test_an_answer_that_drips_is_late_as_a_whole(proxy: Proxy) -> None:
    talker = Talker(200, b"x", 0.1)
    gateways, controllers = OpenClawGateways(bytes(32), tool_timeout_s=0.5), HttpControllers(bytes(32), timeout_s=0.5)
    async with talking(proxy, talker) as machine, asyncio.timeout(5):
        with pytest.raises(GatewayTimeout):
            await gateways.post(machine, "/tools/invoke", {}, {})
        with pytest.raises(ControllerUnreachable):
            await controllers.state(replace(machine, controller=machine.endpoint))
    await gateways.close()
    await controllers.close()


async def test_a_pause_within_an_event_is_not_filled(proxy: Proxy) -> None:
    halves = (CREATED + b"event: response.out", b"put_text.delta\ndata: {}\n\n")

    async def pause(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"%x\r\n%s\r\n" % (len(halves[0]), halves[0]))
        await writer.drain()
        await asyncio.sleep(0.7)
        writer.write(b"%x\r\n%s\r\n" % (len(halves[1]), halves[1]))
        await writer.drain()

    async with (
        raw(proxy, pause),
        proxy.runtime.stream("POST", "/v1/responses", json=ASKED, headers=proxy.headers()) as answer,
    ):
        body = b"".join([piece async for piece in answer.aiter_bytes()])
    assert b"event: response.output_text.delta\n" in body
