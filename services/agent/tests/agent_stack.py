"""The whole agent on a real nats-server and a real Postgres, with a stand-in for the runtime API on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hatchery_agent.main import open_agent, service
from hatchery_common.bus import Bus
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.instances import InstanceStarted, InstanceState
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    GET_THREAD,
    LIST_THREADS,
    RUN_ENDS,
    SUBMIT_MESSAGE,
    CreateThreadRequest,
    PostMessage,
    SubmitMessageRequest,
    ThreadEntry,
    ThreadView,
)
from hatchery_common.database import Database, outbox
from hatchery_common.log import get_logger
from hatchery_common.service import Listener, Parts, Service, ServiceContext
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.postgres import PostgresServer, fresh_database
from hatchery_common.web import serving
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NEVER = asynccontextmanager(lambda context: None)
site = Service(
    name="site",
    open=NEVER,  # pyright: ignore
    produces=(PostMessage, InstanceStarted),
    calls=(CREATE_THREAD, GET_THREAD, LIST_THREADS, SUBMIT_MESSAGE),
    reads_threads=True,
)


@dataclass
class Proxy:
    """A runtime API that knows one turn per key."""

    seen: dict[str, int] = field(default_factory=dict)
    break_first: bool = False
    starting: set[str] = field(default_factory=set)
    refused: int = 0

    async def send(self, request: Request) -> Response:
        body = await request.json()
        if request.headers["x-oa-instance-id"] in self.starting:
            self.refused += 1
            detail = {"code": "instance_not_running", "state": "starting"}
            return JSONResponse({"ok": False, "error": "it is starting", "error_detail": detail}, 503)
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

    async def post(
        self,
        thread: ThreadView,
        run_id: str,
        text: str = "Count!",
        *,
        times: int = 1,
        change: Mapping[str, str] | None = None,
    ) -> None:
        submit = SubmitMessageRequest(
            tenant=TENANT, thread_id=thread.thread_id, run_id=run_id, message_id=f"msg_{run_id}", text=text
        )
        accepted = await self.bus.call(SUBMIT_MESSAGE, submit)
        command = PostMessage(
            tenant=TENANT,
            thread_id=thread.thread_id,
            run_id=run_id,
            instance_id=accepted.instance_id,
            message_id=accepted.message_id,
        ).model_copy(update=change)
        for number in range(times):
            await self.bus.publish(command, id=run_id if number == 0 else f"{run_id}-again-{number}")

    async def until_end(self, thread: ThreadView, run_id: str) -> list[ThreadEntry]:
        entries: list[ThreadEntry] = []
        async with asyncio.timeout(20):
            async for item in self.bus.threads.follow(TENANT, thread.thread_id):
                if item is not None:
                    entries.append(item.entry)
                    if item.entry.run_id == run_id and item.entry.type in RUN_ENDS:
                        break
        return entries

    async def thread(self, key: str = "k", instance: str = "ins_1") -> ThreadView:
        request = CreateThreadRequest(tenant=TENANT, instance_id=instance, client_key=key)
        return await self.bus.call(CREATE_THREAD, request)

    async def until_waiting(self, thread: ThreadView) -> None:
        async with asyncio.timeout(20):
            async for item in self.bus.threads.follow(TENANT, thread.thread_id):
                if item is not None and item.entry.data.get("phase") == "waiting_for_instance":
                    return

    async def ready(self, instance: str, *, lag_s: float = 0) -> None:
        """The instance comes up: its event, and its route, which may be late."""
        if not lag_s:
            self.proxy.starting.discard(instance)
        numbers = ("version", "generation", "since_ms", "created_at_ms", "updated_at_ms")
        words = {"name": "default", "driver": "process", "desired": "running", "status": "ready"}
        about = {"instance_id": instance, "tenant": TENANT}
        state = InstanceState.model_validate(dict.fromkeys(numbers, 1) | words | about)
        await self.bus.publish(InstanceStarted(tenant=TENANT, instance_id=instance, state=state))
        await asyncio.sleep(lag_s)
        self.proxy.starting.discard(instance)

    async def causes(self) -> list[str]:
        async with self.database.connect() as connection:
            found = (await connection.execute(sa.select(outbox.c.headers).order_by(outbox.c.id))).scalars()
            return [headers.get("ce-causationid") for headers in found]

    async def facts(self, wanted: int) -> list[str]:
        async with asyncio.timeout(10):
            while True:
                async with self.database.connect() as connection:
                    found = (await connection.execute(sa.select(outbox.c.event_id).order_by(outbox.c.id))).scalars()
                    facts = list(found)
                if len(facts) >= wanted:
                    return facts
                await asyncio.sleep(0.02)


TENANT = "ta"


@pytest.fixture
def start_deadline_s() -> float:
    """How long a run waits for its instance; a test may parametrize it."""
    return 60


@pytest.fixture
async def stack(postgres: PostgresServer, clean_nats: NatsServer, start_deadline_s: float) -> AsyncGenerator[Stack]:
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
        "HATCHERY_AGENT_LEASE_S": "15",
        "HATCHERY_AGENT_START_DEADLINE_S": str(start_deadline_s),
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
        async with open_agent(context) as parts, _running(agent_bus, databases["agent"], parts):
            yield Stack(bus, agent_bus, databases["agent"], proxy)


@asynccontextmanager
async def _running(bus: Bus, database: Database, parts: Parts) -> AsyncGenerator[None]:
    loops = [asyncio.ensure_future(loop()) for loop in parts.loops]
    on_dead = parts.told_of_dead(database.mark_dead)
    consuming = [await bus.serve(parts.rpcs), await bus.subscribe(parts.subscriptions, on_dead=on_dead)]
    yield
    for part in consuming:
        await part.stop(2.0)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
