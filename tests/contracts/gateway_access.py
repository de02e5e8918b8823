"""Who may speak to a gateway and what it answers besides turns: first part of the conformance suite."""

from __future__ import annotations

import json
import uuid

import httpx
import pytest
from gateway_suite import GatewaySuite, UnderTest
from hatchery_common.secrets import owner_identity
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.adapters.openclaw_socket import GatewaySocket
from hatchery_runtime_proxy.ports import (
    GatewayRefusedIdentity,
    GatewayRejected,
    GatewayUnavailable,
    GatewayUnreachable,
    Identity,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


class GatewayAccess(GatewaySuite):
    """Identity, methods, tools and responses; nothing here restarts the gateway."""

    async def test_health_needs_no_identity(self, gateway: UnderTest) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{gateway.process.machine.endpoint}/health")
        assert (answer.status_code, answer.json()) == (200, {"ok": True, "status": "live"})

    async def test_ready_and_hello(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        machine = gateway.process.machine
        assert await gateways.ready(machine)
        owner = await gateways.hello(machine, Identity.OWNER)
        service = await gateways.hello(machine, Identity.SERVICE)
        assert owner.version == "2026.9.6"
        assert owner.boot_id == service.boot_id
        assert owner.scopes == ("operator.admin",)
        assert service.scopes == ("operator.read",), "scopes come from the configuration, not from what is asked for"

    async def test_impostors_are_refused_over_http(self, gateway: UnderTest) -> None:
        body = {"tool": "sessions_list", "args": {}}
        async with httpx.AsyncClient(trust_env=False, base_url=gateway.process.machine.endpoint) as client:
            for name, headers in gateway.impostors().items():
                for path, sent in (("/tools/invoke", body), ("/v1/responses", {"model": "openclaw", "input": "hi"})):
                    answer = await client.post(path, headers=headers, json=sent)
                    assert answer.status_code in (401, 403), f"{name} on {path}: {answer.status_code}"
                    assert "x-hatchery-" not in answer.text, "the secret header's name is echoed"

    async def test_a_loopback_client_address_is_refused(self, gateway: UnderTest) -> None:
        owner = owner_identity(gateway.process.machine.machine_id)
        headers = {**gateway.identity(owner), "x-forwarded-for": "127.0.0.1"}
        async with httpx.AsyncClient(trust_env=False, base_url=gateway.process.machine.endpoint) as client:
            answer = await client.post("/tools/invoke", headers=headers, json={"tool": "sessions_list"})
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "proxy_attribution_required"

    async def test_impostors_are_refused_over_websocket(self, gateway: UnderTest) -> None:
        url = gateway.process.machine.endpoint.replace("http", "ws")
        for name, headers in gateway.impostors().items():
            with pytest.raises((GatewayRefusedIdentity, GatewayUnreachable)):
                socket = await GatewaySocket.open(url, headers, 10)
                pytest.fail(f"{name} got in with {socket.hello.scopes}")

    @pytest.mark.parametrize("auth", [{"token": "guessed"}, {"password": "guessed"}])
    async def test_credentials_do_not_replace_the_identity(self, gateway: UnderTest, auth: dict[str, str]) -> None:
        url = gateway.process.machine.endpoint.replace("http", "ws")
        async with connect(url, proxy=None) as socket:
            await socket.recv()
            client = {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"}
            params = {"minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": [], "client": client}
            frame = {"type": "req", "id": "1", "method": "connect", "params": {**params, "auth": auth}}
            await socket.send(json.dumps(frame))
            assert json.loads(await socket.recv())["ok"] is False
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008

    async def test_an_upgrade_without_client_address_is_refused(self, gateway: UnderTest) -> None:
        url = gateway.process.machine.endpoint.replace("http", "ws")
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None, additional_headers={"x-forwarded-proto": "http"})
        assert refused.value.response.status_code == 403

    async def test_a_foreign_origin_is_refused(self, gateway: UnderTest) -> None:
        url = gateway.process.machine.endpoint.replace("http", "ws")
        owner = gateway.identity(owner_identity(gateway.process.machine.machine_id))
        with pytest.raises(GatewayRejected) as refused:
            await GatewaySocket.open(url, {**owner, "origin": "http://evil.example"}, 10)
        assert refused.value.context["details"]["code"] == "CONTROL_UI_ORIGIN_NOT_ALLOWED"

    async def test_history_and_sessions(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        session, key, machine = gateway.session(), f"run_{uuid.uuid4().hex}", gateway.process.machine
        await self.turn(gateways, gateway, session, "remember this", key)
        history = await gateways.call(machine, "chat.history", {"sessionKey": session})
        user, assistant = history["messages"]
        assert (user["role"], user["content"], user["idempotencyKey"]) == ("user", "remember this", f"{key}:user")
        assert assistant["content"] == [{"type": "text", "text": gateway.model.reply}]
        assert assistant["__openclaw"]["runId"] == key
        listed = await gateways.call(machine, "sessions.list", {"limit": 100})
        assert session in [row["key"] for row in listed["sessions"]]
        unknown = await gateways.call(machine, "chat.history", {"sessionKey": gateway.session()})
        assert unknown["messages"] == []

    async def test_tools(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        machine, session = gateway.process.machine, gateway.session()
        await self.turn(gateways, gateway, session, "for the tools", f"run_{uuid.uuid4().hex}")
        listed = await gateways.post(machine, "/tools/invoke", {"tool": "sessions_list", "args": {}}, {})
        assert session in [row["key"] for row in listed.body["result"]["details"]["sessions"]]
        arguments = {"sessionKey": session, "limit": 5}
        history = await gateways.post(machine, "/tools/invoke", {"tool": "sessions_history", "args": arguments}, {})
        assert history.body["result"]["details"]["sessionKey"] == session
        unknown = await gateways.post(machine, "/tools/invoke", {"tool": "nope"}, {})
        error = {"ok": False, "error": {"type": "not_found", "message": "Tool not available: nope"}}
        assert (unknown.status, unknown.body) == (404, error)
        nameless = await gateways.post(machine, "/tools/invoke", {}, {})
        assert (nameless.status, nameless.body["error"]["message"]) == (400, "tools.invoke requires name")

    async def test_responses_stream(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        body = json.dumps({"model": "openclaw", "input": "hello", "stream": True}).encode()
        headers = {"x-openclaw-session-key": gateway.session()}
        async with gateways.stream(gateway.process.machine, "/v1/responses", body, headers) as answer:
            assert answer.status == 200
            assert answer.content_type.startswith("text/event-stream")
            lines = b"".join([chunk async for chunk in answer.chunks]).decode().splitlines()
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        assert names[0] == "response.created"
        assert "response.output_text.delta" in names
        assert names[-1] == "response.completed"
        assert lines[-1] == "" or lines[-1] == "data: [DONE]"
        async with gateways.stream(gateway.process.machine, "/v1/responses", b'{"model":"gpt"}', {}) as answer:
            assert answer.status == 400
            assert [chunk async for chunk in answer.chunks]

    async def test_devices_and_pairing(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        machine = gateway.process.machine
        assert await gateways.call(machine, "device.pair.list", {}) == {"pending": [], "paired": []}
        pairing = await gateways.call(machine, "channels.pairing.list", {})
        assert pairing["requests"] == []
        for verb in ("approve", "reject"):
            with pytest.raises(GatewayRejected, match="unknown requestId"):
                await gateways.call(machine, f"device.pair.{verb}", {"requestId": "nope"})

    async def test_the_service_identity_may_only_read(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        machine = gateway.process.machine
        assert (await gateways.call(machine, "health", {}, Identity.SERVICE))["ok"] is True
        with pytest.raises(GatewayRefusedIdentity, match=r"missing scope: operator\.pairing"):
            await gateways.call(machine, "device.pair.list", {}, Identity.SERVICE)
        send = {"sessionKey": gateway.session(), "message": "hi", "idempotencyKey": "nope"}
        with pytest.raises(GatewayRefusedIdentity, match=r"missing scope: operator\.write"):
            await gateways.call(machine, "chat.send", send, Identity.SERVICE)

    async def test_unknown_methods_and_parameters(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        with pytest.raises(GatewayRejected, match=r"unknown method: nope\.nope"):
            await gateways.call(gateway.process.machine, "nope.nope", {})
        with pytest.raises(GatewayRejected, match="must have required property 'message'"):
            await gateways.call(gateway.process.machine, "chat.send", {"sessionKey": gateway.session()})

    async def test_suspension_refuses_and_ends(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        machine = gateway.process.machine
        prepared = await gateways.call(machine, "gateway.suspend.prepare", {"requestId": uuid.uuid4().hex})
        assert prepared["status"] == "ready"
        with pytest.raises(GatewayUnavailable) as refused:
            await gateways.call(machine, "health", {})
        assert refused.value.context["details"]["reason"] == "gateway-suspending"
        await gateways.call(machine, "gateway.suspend.resume", {"suspensionId": prepared["suspensionId"]})
        assert (await gateways.call(machine, "health", {}))["ok"] is True
