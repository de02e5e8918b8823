"""What Hatchery relies on in a gateway, as one suite that the stand-in and the real OpenClaw both pass.

A test module derives from `GatewayConformance` and supplies the fixture `gateway`: a started `GatewayProcess` with a `ModelStub`
as its model provider, shared by the module. The tests that restart it stand last.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from gateway_process import KEY, GatewayProcess
from hatchery_common.secrets import machine_header_name, owner_identity, service_identity
from hatchery_common.testing.model_stub import ModelStub
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.adapters.openclaw_socket import GatewaySocket
from hatchery_runtime_proxy.domain.chat import ChatEvent
from hatchery_runtime_proxy.ports import (
    GatewayRefusedIdentity,
    GatewayRejected,
    GatewayUnavailable,
    GatewayUnreachable,
    Identity,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

LOOP = "module"
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


@pytest.mark.asyncio(loop_scope=LOOP)
class GatewayConformance:
    """The suite."""

    @pytest_asyncio.fixture(loop_scope=LOOP)
    async def gateways(self, gateway: UnderTest) -> AsyncGenerator[OpenClawGateways]:
        gateway.model.delay, gateway.model.status = 0.0, 200
        client = OpenClawGateways(KEY)
        yield client
        await client.close()

    async def turn(self, gateways: OpenClawGateways, gateway: UnderTest, *send: str) -> list[ChatEvent]:
        async with asyncio.timeout(60):
            return [event async for event in gateways.chat(gateway.process.machine, *send)]

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

    async def test_a_turn_streams_and_ends_with_usage(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 0.2
        session, calls = gateway.session(), len(gateway.model.requests)
        events = await self.turn(gateways, gateway, session, "tell me about eggs", f"run_{uuid.uuid4().hex}")
        kinds = [event.kind.value for event in events]
        assert kinds[0] == "accepted"
        assert kinds[-1] == "final"
        assert kinds.count("delta") >= 2, "the answer came in one piece"
        assert "".join(event.data["text"] for event in events if event.kind == "delta") == gateway.model.reply
        assert events[-1].data["text"] == gateway.model.reply
        assert events[-1].data["usage"]["input_tokens"] == 100
        assert events[-1].data["usage"]["output_tokens"] == 7
        asked = gateway.model.requests[calls]
        assert asked["stream"] is True
        assert asked["stream_options"] == {"include_usage": True}
        assert any("tell me about eggs" in text for text in message_texts(asked, "user"))

    async def test_a_second_turn_carries_the_first(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        session = gateway.session()
        await self.turn(gateways, gateway, session, "my name is Ada", f"run_{uuid.uuid4().hex}")
        await self.turn(gateways, gateway, session, "what is my name", f"run_{uuid.uuid4().hex}")
        asked = gateway.model.requests[-1]
        assert any("my name is Ada" in text for text in message_texts(asked, "user"))
        assert gateway.model.reply in message_texts(asked, "assistant")

    async def test_the_same_key_runs_once(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        first = await self.turn(gateways, gateway, session, "once", key)
        calls = len(gateway.model.requests)
        again = await self.turn(gateways, gateway, session, "once", key)
        assert again[0].data == {"run_id": key, "replayed": True}
        assert again[-1].data == first[-1].data
        assert len(gateway.model.requests) == calls

    async def test_a_second_reader_joins_a_running_turn(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 0.3
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        first = asyncio.create_task(self.turn(gateways, gateway, session, "long", key))
        await asyncio.sleep(0.7)
        second = await self.turn(gateways, gateway, session, "long", key)
        assert second[0].data == {"run_id": key, "replayed": True}
        assert second[-1].data["text"] == (await first)[-1].data["text"] == gateway.model.reply

    async def test_a_key_used_for_another_message_is_refused(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        key, machine = f"run_{uuid.uuid4().hex}", gateway.process.machine
        await self.turn(gateways, gateway, gateway.session(), "one thing", key)
        params = {"sessionKey": gateway.session(), "message": "another thing", "idempotencyKey": key}
        with pytest.raises(GatewayRejected) as refused:
            await gateways.call(machine, "chat.send", params)
        assert refused.value.context["details"] == {"reason": "chat-request-conflict"}

    async def test_abort_ends_a_turn(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 1.0
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        last: ChatEvent | None = None
        async with asyncio.timeout(60):
            async for event in gateways.chat(gateway.process.machine, session, "stop me", key):
                last = event
                if event.kind == "delta":
                    params = {"sessionKey": session, "runId": key}
                    answer = await gateways.call(gateway.process.machine, "chat.abort", params)
                    assert answer["runIds"] in ([key], [])
        assert last is not None
        assert last.data["code"] == "aborted"
        again = await self.turn(gateways, gateway, session, "stop me", key)
        assert again[-1].data["code"] == "aborted"

    async def test_a_message_during_a_turn_steers_it(self, gateway: UnderTest, gateways: OpenClawGateways) -> None:
        gateway.model.delay = 1.5
        session, key = gateway.session(), f"run_{uuid.uuid4().hex}"
        second: list[ChatEvent] = []
        last: ChatEvent | None = None
        async with asyncio.timeout(90):
            async for event in gateways.chat(gateway.process.machine, session, "start", key):
                last = event
                if event.kind == "delta" and not second:  # from then on the run is one that can be steered
                    gateway.model.delay = 0.1
                    second = await self.turn(gateways, gateway, session, "and also this", f"run_{uuid.uuid4().hex}")
        assert second[-1].kind == "final"
        assert second[-1].data["steered_into"] == key
        assert last is not None
        assert last.data["text"].count(gateway.model.reply) == 2

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

    async def test_a_state_directory_has_one_owner(self, gateway: UnderTest) -> None:
        intruder = GatewayProcess(gateway.process.command, gateway.process.root, gateway.model.base_url)
        await intruder.start(beside=True)
        assert await intruder.wait_exit() == 78
        assert "another OpenClaw process owns gateway-lifecycle" in intruder.log

    async def test_a_killed_turn_is_interrupted_and_never_repeated(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """The gateway forgets its keys at a restart; the client must not let that start a second run."""
        session, key, done = gateway.session(), f"run_{uuid.uuid4().hex}", f"run_{uuid.uuid4().hex}"
        answered = await self.turn(gateways, gateway, session, "before", done)
        gateway.model.delay = 2.0
        seen: list[ChatEvent] = []
        async with asyncio.timeout(60):
            async for event in gateways.chat(gateway.process.machine, session, "the unlucky one", key):
                seen.append(event)
                if event.kind == "delta":
                    await gateway.process.kill()
        assert seen[-1].data["code"] == "gateway_connection_lost"
        gateway.model.delay = 0.0
        await gateway.process.start()
        await gateway.process.wait_ready()
        again = await self.turn(gateways, gateway, session, "the unlucky one", key)
        assert [event.kind.value for event in again] == ["accepted", "error"], again
        assert again[-1].data["code"] == "interrupted", again
        replay = await self.turn(gateways, gateway, session, "before", done)
        assert replay[-1].data == answered[-1].data
        asked = [text for request in gateway.model.requests for text in message_texts(request, "user")[-2:-1]]
        assert sum("the unlucky one" in text for text in asked) == 1

    async def test_the_gateway_resumes_an_interrupted_turn_itself(
        self, gateway: UnderTest, gateways: OpenClawGateways
    ) -> None:
        """Follows the kill of the test before: a system message and an answer under a run id of the gateway's own."""
        listed = await gateways.call(gateway.process.machine, "sessions.list", {"limit": 100})
        keys = [row["key"] for row in listed["sessions"] if row.get("abortedLastRun") is not None]
        async with asyncio.timeout(40):
            while True:
                for key in keys:
                    history = await gateways.call(gateway.process.machine, "chat.history", {"sessionKey": key})
                    texts = [str(row["content"]) for row in history["messages"] if row["role"] == "user"]
                    resumed = [text for text in texts if text.startswith("[System] Your previous turn was interrupted")]
                    if resumed and history["messages"][-1]["role"] == "assistant":
                        return
                await asyncio.sleep(0.5)

    async def test_sigterm_ends_it_cleanly(self, gateway: UnderTest) -> None:
        assert await gateway.process.terminate() == 0

    @pytest.mark.parametrize(
        ("place", "named"),
        [
            ((), 'Unrecognized key: "bogus"'),
            (("gateway",), 'gateway: Unrecognized key: "bogus"'),
        ],
    )
    async def test_an_unknown_key_exits_78(self, gateway: UnderTest, place: tuple[str, ...], named: str) -> None:
        configuration = gateway.process.configuration()
        node = configuration
        for step in place:
            node = node[step]
        node["bogus"] = 1
        await gateway.process.start(configuration)
        assert await gateway.process.wait_exit() == 78
        assert named in gateway.process.log

    async def test_a_missing_mode_exits_78(self, gateway: UnderTest) -> None:
        configuration = gateway.process.configuration()
        del configuration["gateway"]["mode"]
        await gateway.process.start(configuration)
        assert await gateway.process.wait_exit() == 78
        assert "missing gateway.mode" in gateway.process.log
