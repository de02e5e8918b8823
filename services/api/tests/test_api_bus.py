"""The api under the real runner, on a real bus and Postgres, beside stand-ins for the provisioner and the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
from hatchery_api.main import service
from hatchery_common.bus import Subscription
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.contracts import instances, operations, threads
from hatchery_common.contracts.instances import DesiredState, InstanceState, InstanceStatus
from hatchery_common.contracts.threads import SubmitMessageResponse, ThreadEntry, ThreadEntryType, ThreadView
from hatchery_common.errors import NotFound
from hatchery_common.ids import new_id, thread_id
from hatchery_common.run import ORDER, run_services
from hatchery_common.service import Parts, RpcHandler, Service
from hatchery_common.sse import follow_events
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.postgres import fresh_database

ME = {"X-OA-Internal-Key": "k" * 32, "X-OA-User-Id": "ada"}


async def obey(delivery, *, bus):
    """The provisioner in short: whatever is wished has happened."""
    wish = delivery.message
    ids = {"tenant": wish.tenant, "instance_id": wish.instance_id}
    gone = isinstance(wish, instances.DeleteInstance)
    status = InstanceStatus.DELETED if gone else InstanceStatus.READY
    state = InstanceState(
        **ids, name="default", version=wish.generation, generation=wish.generation, desired=DesiredState.RUNNING,
        status=status, since_ms=1, operation_id=wish.operation_id, driver="fake", machine_id="mch_1",
        created_at_ms=1, updated_at_ms=1,
    )  # fmt: skip
    step = {**ids, "operation_id": wish.operation_id, "step": "create_machine"}
    await bus.publish(operations.InstanceStepStarted(**step), cause=delivery)
    await bus.publish(operations.InstanceStepFinished(**step, ok=True, duration_ms=1), cause=delivery)
    await bus.publish(instances.STATUS_EVENTS[status](**ids, state=state), cause=delivery)
    end = {**ids, "operation_id": wish.operation_id, "generation": wish.generation}
    await bus.publish(operations.InstanceOperationFinished(**end), cause=delivery)


@asynccontextmanager
async def open_provisioner(context) -> AsyncGenerator[Parts]:
    handler = partial(obey, bus=context.bus)
    yield Parts(subscriptions=[Subscription(command, handler) for command in instances.COMMANDS])


class Agent:
    """The agent in short: it answers with what was said."""

    def __init__(self, bus) -> None:
        self.bus = bus
        self.texts: dict[str, str] = {}
        self.known: dict[str, tuple[str, ThreadView]] = {}

    async def create(self, request) -> ThreadView:
        named = thread_id(request.tenant, request.client_key)
        view = ThreadView(
            thread_id=named, instance_id=request.instance_id, session_key=named, created_at_ms=1, updated_at_ms=1
        )
        return self.known.setdefault(named, (request.tenant, view))[1]

    async def get(self, request) -> ThreadView:
        tenant, view = self.known.get(request.thread_id, ("", None))
        if view is None or tenant != request.tenant:
            raise NotFound("there is no such thread")
        return view

    async def submit(self, request) -> SubmitMessageResponse:
        view = await self.get(request)
        self.texts[request.run_id] = request.text
        return SubmitMessageResponse(
            thread_id=request.thread_id, run_id=request.run_id, message_id=request.message_id,
            instance_id=view.instance_id,
        )  # fmt: skip

    async def answer(self, delivery) -> None:
        post = delivery.message
        assert delivery.id == post.run_id
        text = self.texts[post.run_id]
        kinds = ThreadEntryType
        said = [(kinds.MESSAGE_USER, text), (kinds.MESSAGE_ASSISTANT, text[::-1]), (kinds.RUN_FINISHED, "")]
        entries = [
            ThreadEntry(
                id=new_id("ent"), type=kind, thread_id=post.thread_id, at_ms=1, run_id=post.run_id, data={"text": one}
            )
            for kind, one in said
        ]
        _, last = await self.bus.threads.bounds(post.tenant, post.thread_id)
        await self.bus.threads.append(post.tenant, post.thread_id, entries, expected_last=last)
        ids = {"tenant": post.tenant, "run_id": post.run_id, "thread_id": post.thread_id}
        await self.bus.publish(threads.RunFinished(**ids, instance_id=post.instance_id, at_ms=2), cause=delivery)


@asynccontextmanager
async def open_agent(context) -> AsyncGenerator[Parts]:
    agent = Agent(context.bus)
    answers = [
        RpcHandler(threads.CREATE_THREAD, agent.create),
        RpcHandler(threads.GET_THREAD, agent.get),
        RpcHandler(threads.SUBMIT_MESSAGE, agent.submit),
    ]
    yield Parts(subscriptions=[Subscription(threads.PostMessage, agent.answer)], rpcs=answers)


provisioner = Service(
    "provisioner", open_provisioner, consumes=tuple(instances.COMMANDS), produces=tuple(instances.EVENTS)
)
agent = Service(
    "agent", open_agent, consumes=tuple(threads.COMMANDS), produces=tuple(threads.EVENTS),
    serves=(threads.CREATE_THREAD, threads.GET_THREAD, threads.SUBMIT_MESSAGE), writes_threads=True,
)  # fmt: skip


async def until_ready(all_ready, running, phases):
    """Wait for the services, or fail at once with what kept one of them from starting."""
    waiting = asyncio.create_task(all_ready.wait())
    await asyncio.wait({waiting, running}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if running.done():
        await running
    assert all_ready.is_set(), phases


@pytest.fixture
async def stack(clean_nats, postgres):
    """The three services in this loop; yields a client of the api."""
    services = (service, provisioner, agent)
    connection = Connection(clean_nats.url, "bus-admin")
    await connection.open()
    await migrate(JetStream(connection), services)
    await connection.close()
    async with fresh_database(postgres, service) as databases:
        port, stop = free_port(), asyncio.Event()
        environment = {
            "HATCHERY_NATS_URL": clean_nats.url,
            "HATCHERY_DATABASE_URL": databases["api"].url,
            "HATCHERY_HEALTH_BASE_PORT": str(free_port(span=len(ORDER))),
            "HATCHERY_API_PORT": str(port),
            "NEXTAUTH_SECRET": "w" * 64,
            "INTERNAL_API_SECRET": "i" * 32,
            "OA_INTERNAL_KEY": "k" * 32,
            "HATCHERY_KEY_RUNTIME_SERVICE": "ab" * 32,
        }
        phases: dict[str, str] = {}
        all_ready = asyncio.Event()

        def note(health) -> None:
            phases[health.service] = f"{health.phase} {health.reason or ''}".strip()
            if list(phases.values()) == ["running"] * len(services):
                all_ready.set()

        running = asyncio.create_task(run_services(services, environment, stop=stop, on_change=note))
        try:
            await until_ready(all_ready, running, phases)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=ME, timeout=30) as client:
                yield client
        finally:
            stop.set()
            await asyncio.wait_for(running, 30)


async def events_of(response):
    """(id, event, data) of a stream, as they come."""
    async for one in follow_events(response.aiter_lines()):
        yield one.id, one.event, one.data


async def test_provision_follow_chat_and_delete(stack):
    made = (await stack.post("/api/openclaw/instance")).json()["data"]
    async with stack.stream("GET", made["operation"]["events_url"]) as response:
        kinds = [kind async for _, kind, _ in events_of(response)]
    assert kinds == ["accepted", "step_started", "step_finished", "status", "finished"]
    instance = (await stack.get("/api/openclaw/instance")).json()["data"]
    assert (instance["status"], instance["machine_id"], instance["operation"]) == ("ready", "mch_1", None)

    async with stack.stream("POST", "/api/openclaw/chat", json={"message": "abc"}) as response:
        thread = response.headers["x-hatchery-thread-id"]
        said = [(kind, data.get("data", {}).get("text")) async for _, kind, data in events_of(response)]
    assert said[1:] == [("message.user", "abc"), ("message.assistant", "cba"), ("run.finished", "")]

    async with stack.stream("GET", f"/api/threads/{thread}/events") as response:
        first = await anext(aiter(events_of(response)))
    headers = {"Last-Event-ID": first[0]}
    async with stack.stream("GET", f"/api/threads/{thread}/events", headers=headers) as response:
        assert (await anext(aiter(events_of(response))))[1] == "message.assistant"
    headers = {"Last-Event-ID": "1000000"}
    async with stack.stream("GET", f"/api/threads/{thread}/events", headers=headers) as response:
        reset = await anext(aiter(events_of(response)))
    assert reset[1] == "reset"
    assert [message["text"] for message in reset[2]["messages"]] == ["abc", "cba"]

    gone = (await stack.delete("/api/openclaw/instance")).json()["data"]
    async with stack.stream("GET", gone["operation"]["events_url"]) as response:
        assert [kind async for _, kind, _ in events_of(response)][-1] == "finished"
    assert (await stack.get("/api/openclaw/instance")).json()["data"] is None
