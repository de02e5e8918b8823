"""What the parts of the gateway's conformance suite share: the gateway under test, its client, and one turn."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from gateway_process import KEY, GatewayProcess
from hatchery_common.secrets import machine_header_name, owner_identity, service_identity
from hatchery_common.testing.model_stub import ModelStub
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.ports import Machine

LOOP = "module"
PATIENCE_S = 60.0  # a gateway that has just started on a busy machine took ten seconds for a chat.history
TURN_S = 100.0
# Every header by which some proxy is documented to name its user, OpenClaw's own included.
DOCUMENTED_USER_HEADERS = (
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-preferred-username",
    "x-auth-request-user",
    "x-auth-request-email",
    "x-authenticated-user",
    "x-remote-user",
    "remote-user",
    "x-openclaw-user",
    "cf-access-authenticated-user-email",
    "x-pomerium-claim-email",
    "x-goog-authenticated-user-email",
    "tailscale-user-login",
)
_ATTRIBUTION = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http"}


@dataclass(frozen=True)
class UnderTest:
    """The gateway and the model that it calls."""

    process: GatewayProcess
    model: ModelStub

    def session(self) -> str:
        """A session key that nothing else uses."""
        return f"agent:main:hatch:{uuid.uuid4().hex[:12]}"

    def identity(self, who: str, machine_id: str | None = None) -> dict[str, str]:
        """The right headers of a user; or another machine's."""
        return {**_ATTRIBUTION, machine_header_name(KEY, machine_id or self.process.machine.machine_id): who}

    def impostors(self) -> dict[str, dict[str, str]]:
        """Requests by which somebody on this host, or a neighbour's machine, might pose as the owner."""
        machine_id = self.process.machine.machine_id
        found: dict[str, dict[str, str]] = {"nothing": {}, "attribution alone": dict(_ATTRIBUTION)}
        for who in (owner_identity(machine_id), service_identity(machine_id)):
            found[f"every documented header as {who}"] = {
                **_ATTRIBUTION,
                **dict.fromkeys(DOCUMENTED_USER_HEADERS, who),
                "x-forwarded-host": "localhost",
                "x-real-ip": "192.0.2.1",
                "x-openclaw-scopes": "operator.admin",
                "authorization": "Bearer guessed",
            }
            found[f"a neighbour's header as {who}"] = self.identity(who, "mch_neighbour")
        found["a neighbour's headers"] = self.identity(owner_identity("mch_neighbour"), "mch_neighbour")
        found["right name, unknown user"] = self.identity("somebody@else")
        found["right name, no proxy headers"] = {machine_header_name(KEY, machine_id): owner_identity(machine_id)}
        return found


def message_texts(request: dict[str, Any], role: str) -> list[str]:
    """The texts of a role in what the model was asked."""
    texts: list[str] = []
    for message in request["messages"]:
        content = message["content"]
        if message["role"] == role:
            texts.append(content if isinstance(content, str) else "".join(part.get("text", "") for part in content))
    return texts


@contextlib.asynccontextmanager
async def late_hello(machine: Machine, seconds: float) -> AsyncGenerator[Machine]:
    """The machine behind a relay that holds back what a client says after its upgrade, so that the hello comes this late."""
    port = int(machine.endpoint.rpartition(":")[2])

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(pause_s)
                pause_s = 0.0

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, up_writer, seconds), carry(up_reader, writer, 0.0))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield replace(machine, endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


@pytest.mark.asyncio(loop_scope=LOOP)
class GatewaySuite:
    """The base of the suites."""

    @pytest_asyncio.fixture(loop_scope=LOOP)
    async def gateways(self, gateway: UnderTest) -> AsyncGenerator[OpenClawGateways]:
        gateway.model.delay, gateway.model.status = 0.0, 200
        client = OpenClawGateways(KEY, timeout_s=PATIENCE_S, hello_timeout_s=PATIENCE_S)
        yield client
        await client.close()

    async def turn(self, gateways: OpenClawGateways, gateway: UnderTest, *send: str) -> list[ChatEvent]:
        async with asyncio.timeout(TURN_S):
            return [event async for event in gateways.chat(gateway.process.machine, *send)]
