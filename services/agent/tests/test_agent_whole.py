"""The whole agent on a real nats-server and a real Postgres, with a stand-in for the runtime API on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hatchery_agent.domain.errors import LeaseLost
from hatchery_agent.handlers.writing import ThreadWriter
from hatchery_agent.main import open_agent, service
from hatchery_agent.ports import Lease
from hatchery_common.bus import Bus
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    GET_THREAD,
    LIST_THREADS,
    RUN_ENDS,
    SUBMIT_MESSAGE,
    CreateThreadRequest,
    GetThreadRequest,
    PostMessage,
    SubmitMessageRequest,
    ThreadEntry,
    ThreadEntryType,
    ThreadView,
)
from hatchery_common.database import Database, outbox
from hatchery_common.log import get_logger
from hatchery_common.service import Listener, Parts, Service, ServiceContext
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import PostgresServer, free_port, fresh_database
from hatchery_common.web import serving
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

NEVER = asynccontextmanager(lambda context: None)
site = Service(
    name="site",
    open=NEVER,  # pyright: ignore
    produces=(PostMessage,),
    calls=(CREATE_THREAD, GET_THREAD, LIST_THREADS, SUBMIT_MESSAGE),
    reads_threads=True,
)


@dataclass
class Proxy:
    """A runtime API that knows one turn per key."""

    seen: dict[str, int] = field(default_factory=dict)
    break_first: bool = False

    async def send(self, request: Request) -> Response:
        body = await request.json()
        key = body["idempotencyKey"]
        self.seen[key] = self.seen.get(key, 0) + 1

        async def events() -> AsyncGenerator[bytes]:
            yield b'event: accepted\ndata: {"run_id": "r", "replayed": false}\n\n'
            for word in ("One", " two", " three"):
                await asyncio.sleep(0.02)
                yield b'event: delta\ndata: {"text": "%s"}\n\n' % word.encode()
            if self.break_first and self.seen[key] == 1:
                return
            yield b'event: final\ndata: {"text": "One two three", "usage": {"input_tokens": 9, "output_tokens": 3}}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")


@dataclass
class Stack:
    """What a test speaks to."""

    bus: Bus
    agent_bus: Bus
    database: Database
    proxy: Proxy

    async def post(self, thread: ThreadView, run_id: str, text: str = "Count!", *, times: int = 1) -> None:
        submit = SubmitMessageRequest(
            tenant=thread_tenant, thread_id=thread.thread_id, run_id=run_id, message_id=f"msg_{run_id}", text=text
        )
        accepted = await self.bus.call(SUBMIT_MESSAGE, submit)
        command = PostMessage(
            tenant=thread_tenant,
            thread_id=thread.thread_id,
            run_id=run_id,
            instance_id=accepted.instance_id,
            message_id=accepted.message_id,
        )
        for number in range(times):
            await self.bus.publish(command, id=run_id if number == 0 else f"{run_id}-again-{number}")

    async def until_end(self, thread: ThreadView, run_id: str) -> list[ThreadEntry]:
        entries: list[ThreadEntry] = []
        async with asyncio.timeout(20):
            async for item in self.bus.threads.follow(thread_tenant, thread.thread_id):
                if item is not None:
                    entries.append(item.entry)
                    if item.entry.run_id == run_id and item.entry.type in RUN_ENDS:
                        break
        return entries

    async def thread(self, key: str = "k") -> ThreadView:
        request = CreateThreadRequest(tenant=thread_tenant, instance_id="ins_1", client_key=key)
        return await self.bus.call(CREATE_THREAD, request)

    async def facts(self, wanted: int) -> list[str]:
        async with asyncio.timeout(10):
            while True:
                async with self.database.connect() as connection:
                    found = (await connection.execute(sa.select(outbox.c.event_id).order_by(outbox.c.id))).scalars()
                    facts = list(found)
                if len(facts) >= wanted:
                    return facts
                await asyncio.sleep(0.02)


thread_tenant = "ta"


@pytest.fixture
async def stack(postgres: PostgresServer, clean_nats: NatsServer) -> AsyncGenerator[Stack]:
    connection = Connection(clean_nats.url, "migrator")
    await connection.open()
    await migrate(JetStream(connection), [service, site])
    await connection.close()
    proxy = Proxy()
    port = free_port()
    app = Starlette(routes=[Route("/v1/sessions/{key:path}/send", proxy.send, methods=["POST"])])
    environment = {
        "HATCHERY_AGENT_RUNTIME_URL": f"http://127.0.0.1:{port}",
        "HATCHERY_KEY_RUNTIME_SERVICE": "aa" * 32,
        "HATCHERY_AGENT_LEASE_S": "3",
    }
    async with (
        serving(Listener("proxy", app, "127.0.0.1", port)),
        fresh_database(postgres, service) as databases,
        Bus.open(clean_nats.url, service) as agent_bus,
        Bus.open(clean_nats.url, site) as bus,
    ):
        context = ServiceContext(
            "agent", environment, agent_bus, SystemClock(), get_logger("agent"), CollectorRegistry(), databases["agent"]
        )
        async with open_agent(context) as parts:
            running = await _run(agent_bus, parts)
            yield Stack(bus, agent_bus, databases["agent"], proxy)
            for part in running:
                await part.stop(2.0)


async def _run(bus: Bus, parts: Parts):
    return [await bus.serve(parts.rpcs), await bus.subscribe(parts.subscriptions)]


async def test_a_posted_message_streams_into_the_log_and_is_announced_once(stack: Stack):
    thread = await stack.thread()
    await stack.post(thread, "run_1", times=3)
    entries = await stack.until_end(thread, "run_1")
    kinds = [str(entry.type) for entry in entries]
    assert kinds[:4] == ["thread.created", "message.user", "run.queued", "run.started"]
    assert kinds[-2:] == ["message.assistant", "run.finished"]
    assert "".join(e.data["text"] for e in entries if e.type is ThreadEntryType.TEXT_DELTA) == "One two three"
    assert await stack.facts(2) == ["run_1-started-1", "run_1-end"]
    await stack.post(thread, "run_2")
    await stack.until_end(thread, "run_2")
    assert stack.proxy.seen == {"run_1": 1, "run_2": 1}
    view = await stack.bus.call(GET_THREAD, GetThreadRequest(tenant=thread_tenant, thread_id=thread.thread_id))
    assert view.last_run_id == "run_2"


async def test_messages_of_one_thread_are_answered_in_order_and_of_two_threads_side_by_side(stack: Stack):
    first, second = await stack.thread("a"), await stack.thread("b")
    for number in range(3):
        await stack.post(first, f"run_a{number}")
        await stack.post(second, f"run_b{number}")
    entries = await stack.until_end(first, "run_a2")
    started = [entry.run_id for entry in entries if entry.type is ThreadEntryType.RUN_STARTED]
    ended = [entry.run_id for entry in entries if entry.type in RUN_ENDS]
    assert started == ended == ["run_a0", "run_a1", "run_a2"]
    await stack.until_end(second, "run_b2")


async def test_a_broken_stream_is_taken_up_and_folds_to_one_answer(stack: Stack):
    stack.proxy.break_first = True
    thread = await stack.thread()
    await stack.post(thread, "run_1")
    entries = await stack.until_end(thread, "run_1")
    assert [entry.attempt for entry in entries if entry.type is ThreadEntryType.RUN_STARTED] == [1, 2]
    assert [entry.type for entry in entries].count(ThreadEntryType.MESSAGE_ASSISTANT) == 1


async def test_a_zombies_append_is_refused_by_the_real_log(stack: Stack):
    thread = await stack.thread()
    zombie = ThreadWriter(stack.agent_bus.threads, Lease(thread_tenant, thread.thread_id, "wrk_old", 1), SystemClock())
    await zombie.open(0)
    await stack.post(thread, "run_1")
    before = await stack.until_end(thread, "run_1")
    with pytest.raises(LeaseLost):
        await zombie.append(zombie.entry(ThreadEntryType.RUN_STARTED, "run_1", 1))
    after = [item.entry async for item in stack.bus.threads.read(thread_tenant, thread.thread_id)]
    assert after == before


async def test_reading_resumes_after_any_sequence(stack: Stack):
    thread = await stack.thread()
    await stack.post(thread, "run_1")
    await stack.until_end(thread, "run_1")
    again = [item async for item in stack.bus.threads.read(thread_tenant, thread.thread_id)]
    resumed = [item async for item in stack.bus.threads.read(thread_tenant, thread.thread_id, again[3].sequence)]
    assert resumed == again[4:]
    assert [item.sequence for item in again] == sorted({item.sequence for item in again})
