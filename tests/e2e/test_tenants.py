"""What one tenant, or a program beside a gateway, can reach of another: nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hatchery_common.secrets import machine_header_name, owner_identity, service_identity
from visitor import refusal
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from whole_stack import WholeStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_ATTRIBUTION = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http"}
_DOCUMENTED = (
    "x-forwarded-user", "x-forwarded-email", "x-forwarded-preferred-username", "x-auth-request-user",
    "x-auth-request-email", "x-authenticated-user", "x-remote-user", "remote-user", "x-openclaw-user",
    "cf-access-authenticated-user-email", "x-pomerium-claim-email", "tailscale-user-login",
)  # fmt: skip
_CONNECT = {
    "minProtocol": 4,
    "maxProtocol": 4,
    "client": {"id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend"},
    "role": "operator",
    "scopes": ["operator.read"],
}


def test_the_ids_of_another_tenant_do_not_exist(stack: WholeStack, user: Callable[[], str]) -> None:
    ann, bob = stack.visitor(user()), stack.visitor(user())
    operation = ann.wish("provision")["operation"]["operation_id"]
    thread = ann.thread()["thread_id"]
    run = ann.say(thread, "mine").events[0].data["run_id"]

    assert bob.instance() is None
    assert bob.get("/api/openclaw/instances") == []
    assert bob.get("/api/threads")["threads"] == []
    for method, path in (
        ("GET", f"/api/operations/{operation}"),
        ("GET", f"/api/operations/{operation}/events"),
        ("GET", f"/api/threads/{thread}"),
        ("GET", f"/api/threads/{thread}/events"),
        ("GET", f"/api/runs/{run}"),
        ("POST", "/api/openclaw/instance/stop"),
        ("GET", "/api/openclaw/sessions"),
    ):
        refusal(bob.request(method, path), 404)
    refusal(bob.request("POST", f"/api/threads/{thread}/messages", json={"text": "not mine"}), 404)
    refusal(bob.request("POST", "/api/openclaw/chat", json={"message": "hi", "threadId": thread}), 404)
    assert len(ann.history(thread)) == 2
    ann.wish("delete")


def test_nobody_beside_a_gateway_may_speak_to_it(stack: WholeStack, user: Callable[[], str]) -> None:
    ann, bob = stack.visitor(user()), stack.visitor(user())
    machines = []
    for visitor in (ann, bob):
        visitor.wish("provision")
        machines.append(visitor.instance())
    key = bytes.fromhex(stack.key("machine-identity"))
    url = f"http://127.0.0.1:{gateway_port(stack, machines[1]['instance_id'])}"
    theirs, own = (one["machine_id"] for one in machines)

    right = {**_ATTRIBUTION, machine_header_name(key, own): owner_identity(own)}
    assert list_sessions(url, right) == 200, "the right headers must work, or the test shows nothing"
    for name, headers in impostors(key, theirs, own).items():
        assert list_sessions(url, headers) in (401, 403), name
        assert not may_connect(url, headers), name
    for visitor in (ann, bob):
        visitor.wish("delete")


def gateway_port(stack: WholeStack, instance_id: str) -> int:
    return int(json.loads((stack.root_of(instance_id) / "state" / "openclaw.json").read_text())["gateway"]["port"])


def impostors(key: bytes, theirs: str, own: str) -> dict[str, dict[str, str]]:
    """What a program of this host, or the neighbour's instance, could send."""
    found: dict[str, dict[str, str]] = {"nothing": {}, "attribution alone": _ATTRIBUTION}
    for who in (owner_identity(theirs), owner_identity(own), service_identity(own)):
        found[f"every documented header as {who}"] = {**_ATTRIBUTION, **dict.fromkeys(_DOCUMENTED, who)}
        found[f"the neighbour's header as {who}"] = {**_ATTRIBUTION, machine_header_name(key, theirs): who}
    return found


def list_sessions(url: str, headers: dict[str, str]) -> int:
    body = {"tool": "sessions_list", "args": {}}
    return httpx.post(f"{url}/tools/invoke", json=body, headers=headers, timeout=30, trust_env=False).status_code


def may_connect(url: str, headers: dict[str, str]) -> bool:
    """Whether a WebSocket with these headers gets as far as a hello."""
    try:
        with connect(url.replace("http", "ws"), additional_headers=headers, open_timeout=30, proxy=None) as socket:
            socket.recv(30)  # the challenge
            socket.send(json.dumps({"type": "req", "id": "1", "method": "connect", "params": _CONNECT}))
            return bool(json.loads(socket.recv(30)).get("ok"))
    except (InvalidStatus, ConnectionClosed):
        return False


def test_twenty_provisions_at_once_make_one_machine(stack: WholeStack, user: Callable[[], str]) -> None:
    who = user()
    ann = stack.visitor(who)

    def provision(number: int) -> dict[str, Any]:
        key = "one-key" if number % 2 else f"key-{number}"
        return stack.caller(Authorization=f"Bearer {token}", Idempotency_Key=key).post("/api/openclaw/instance")

    token = stack.token(who)
    with ThreadPoolExecutor(20) as pool:
        accepted = list(pool.map(provision, range(20)))
    assert len({one["instance_id"] for one in accepted}) == 1
    operations = {one["operation"]["operation_id"] for one in accepted if one["operation"]}
    assert len(operations) == 1
    ann.settled(operations.pop())
    instance_id = accepted[0]["instance_id"]
    assert len(ann.get("/api/openclaw/instances")) == 1
    assert ann.instance()["generation"] == 1
    controllers = [line for line in stack.processes() if "hatchery_controller" in line and instance_id in line]
    assert len(controllers) == 1
    ann.wish("delete")
