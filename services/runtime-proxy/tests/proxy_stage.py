"""A runtime-proxy without NATS: its two applications on real sockets, a stand-in gateway, a scripted model, recorded usage."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.gateways import UsageOpened, UsageRecorded
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import DependencyUnavailable
from hatchery_common.ids import new_id
from hatchery_common.log import get_logger
from hatchery_common.secrets import (
    machine_header_name,
    mint_model_token,
    owner_identity,
    public_key,
    runtime_service_token,
    service_identity,
)
from hatchery_common.service import Listener
from hatchery_common.testing.fake_gateway.configuration import Configuration, Provider
from hatchery_common.testing.fake_gateway.gateway import Gateway
from hatchery_common.testing.fake_gateway.http_surface import Surface
from hatchery_common.testing.fake_gateway.wire import Server
from hatchery_common.testing.model_stub import ModelStub
from hatchery_common.testing.ports import free_port
from hatchery_common.web import serving
from hatchery_runtime_proxy.adapters.demo import DemoModel
from hatchery_runtime_proxy.adapters.openai import OpenAIProvider
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.domain.deadlines import StreamLimits
from hatchery_runtime_proxy.domain.table import RouteTable
from hatchery_runtime_proxy.handlers.models import ModelCalls
from hatchery_runtime_proxy.ports import Machine
from hatchery_runtime_proxy.routes.access import RuntimeTools
from hatchery_runtime_proxy.routes.models import ModelTools, model_gateway
from hatchery_runtime_proxy.routes.runtime import runtime_api

KEY, SERVICE_KEY, SEED = bytes(range(32)), b"s" * 32, b"m" * 32
ANN, BOB = "tann", "tbob"


class RecordedUsage:
    """The port UsageLog, kept in a list in the order of the calls."""

    def __init__(self) -> None:
        self.events: list[UsageOpened | UsageRecorded] = []
        self.down = False

    async def opened(self, event: UsageOpened) -> None:
        if self.down:
            raise DependencyUnavailable("the bus is down")
        self.events.append(event)

    async def recorded(self, event: UsageRecorded) -> None:
        self.events.append(event)


class RecordedControllers:
    """The port Controllers."""

    def __init__(self) -> None:
        self.restarts: list[tuple[str, str]] = []

    async def restart_gateway(self, machine: Machine, reason: str) -> dict[str, Any]:
        self.restarts.append((machine.machine_id, reason))
        return {"accepted": True}

    async def state(self, machine: Machine) -> dict[str, Any]:
        return {}


class FakeMachine:
    """The stand-in gateway inside this process."""

    def __init__(self, machine_id: str, state_dir: Path, model_url: str, model_key: str = "k") -> None:
        self.machine_id, self.state_dir = machine_id, state_dir
        owner, service = owner_identity(machine_id), service_identity(machine_id)
        configuration = Configuration(
            port=0,
            host="127.0.0.1",
            mode="trusted-proxy",
            user_header=machine_header_name(KEY, machine_id),
            required_headers=("x-forwarded-proto",),
            allow_users=(owner, service),
            allow_loopback=True,
            trusted_proxies=("127.0.0.1",),
            identity_scopes={owner: ("operator.admin",), service: ("operator.read",)},
            allowed_origins=(),
            responses_enabled=True,
            allowed_tools=(),
            provider=Provider(model_url, model_key, "hatchery", "demo"),
        )
        self.gateway = Gateway(configuration, state_dir)
        surface = Surface(self.gateway)
        self._server = Server(surface.handle, surface.upgrade, surface.refuse_upgrade)
        self.endpoint = ""

    async def start(self) -> None:
        self.endpoint = f"http://127.0.0.1:{await self._server.start('127.0.0.1', 0)}"

    async def stop(self) -> None:
        for run in self.gateway.runs.active:
            self.gateway.runs.abort(run.session_key, None)
        await self._server.stop()

    def seed_devices(self, *request_ids: str) -> None:
        pending = [{"requestId": name, "deviceId": f"dev-{name}", "token": "hush"} for name in request_ids]
        (self.state_dir / "fake-devices.json").write_text(json.dumps({"pending": pending, "paired": []}))

    def seed_pairings(self, *rows: dict[str, str]) -> None:
        (self.state_dir / "fake-pairings.json").write_text(json.dumps(rows))


@dataclass
class Proxy:
    """Everything that a test touches."""

    table: RouteTable
    machine: FakeMachine
    model: ModelStub
    usage: RecordedUsage
    controllers: RecordedControllers
    gateways: OpenClawGateways
    calls: ModelCalls
    runtime: httpx.AsyncClient
    llm: httpx.AsyncClient
    routes: dict[str, Route] = field(default_factory=dict)

    def route(self, instance_id: str = "ins_ann", **changes: Any) -> Route:
        """Puts a new version of an instance's route into the table."""
        held = self.routes.get(instance_id)
        route = Route(
            instance_id=instance_id,
            tenant=changes.pop("tenant", ANN),
            state=changes.pop("state", RouteState.RUNNING),
            route_version=(held.route_version if held else 0) + 1,
            machine_id=changes.pop("machine_id", self.machine.machine_id),
            endpoint=changes.pop("endpoint", self.machine.endpoint),
            controller="http://127.0.0.1:1",
            changed_at_ms=1,
            **changes,
        )
        self.routes[instance_id] = route
        self.table.apply(route)
        return route

    def headers(self, tenant: str = ANN, **extra: str) -> dict[str, str]:
        token = runtime_service_token(SERVICE_KEY, tenant)
        return {"x-openagents-service-token": token, "x-oa-tenant-key": tenant, **extra}

    def bearer(self, machine_id: str | None = None) -> dict[str, str]:
        token = mint_model_token(SEED, machine_id or self.machine.machine_id, issued_at=1)
        return {"authorization": f"Bearer {token}"}


LIMITS = StreamLimits(status_s=0.2, keepalive_s=0.2, first_byte_s=1.5, idle_s=1.5)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncGenerator[Proxy]:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ModelStub())
        machine = FakeMachine("mch_ann", tmp_path, model.base_url)
        await machine.start()
        stack.push_async_callback(machine.stop)
        table, usage, controllers = RouteTable(), RecordedUsage(), RecordedControllers()
        gateways = OpenClawGateways(KEY, timeout_s=5, hello_timeout_s=2)
        stack.push_async_callback(gateways.close)
        provider = OpenAIProvider(model.base_url, "sk-provider", "stub-large", idle_s=5)
        stack.push_async_callback(provider.close)
        calls = ModelCalls(
            demo=DemoModel(0.01),
            provider=provider,
            usage=usage,
            clock=SystemClock(),
            new_id=new_id,
            log=get_logger("test"),
        )
        stack.push_async_callback(calls.close)
        tools = RuntimeTools(
            table, gateways, controllers, lambda t: runtime_service_token(SERVICE_KEY, t), LIMITS, max_body=64_000
        )
        runtime = await _served(stack, "runtime API", runtime_api(tools))
        llm = await _served(stack, "model gateway", model_gateway(ModelTools(table, calls, public_key(SEED), 64_000)))
        built = Proxy(table, machine, model, usage, controllers, gateways, calls, runtime, llm)
        table.refresh([], table.mark(), now=1.0)
        built.route()
        yield built


async def _served(stack: AsyncExitStack, name: str, app: Any) -> httpx.AsyncClient:
    port = free_port()
    await stack.enter_async_context(serving(Listener(name, app, "127.0.0.1", port)))
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)
    return await stack.enter_async_context(client)


async def read_events(lines: AsyncIterator[str]) -> list[tuple[str, dict[str, Any]]]:
    """Named server-sent events with their data."""
    found: list[tuple[str, dict[str, Any]]] = []
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: {"):
            found.append((name, json.loads(line[6:])))
    return found
