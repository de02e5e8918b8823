"""The runtime API inside the trust boundary (A3), and the two hops that lead to it (A2)."""

from __future__ import annotations

import json
from collections.abc import Callable

import psutil
import pytest
from hatchery_common.ids import tenant_key
from hatchery_common.secrets import runtime_service_token
from people import Person
from visitor import Visitor, data_of, refusal
from whole_stack import WholeStack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_ENDPOINTS = (
    ("GET", "/v1/status"),
    ("POST", "/v1/gateway/restart"),
    ("GET", "/v1/devices"),
    ("POST", "/v1/devices/some/approve"),
    ("POST", "/v1/tools/invoke"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/main/history"),
    ("POST", "/v1/sessions/main/send"),
    ("POST", "/v1/responses"),
)


@pytest.mark.mission("A2.7")
def test_a2_7_the_user_is_named_in_header_query_or_body(
    newcomer: tuple[str, Visitor], platform: Visitor, acting: Callable[[str], Visitor]
) -> None:
    user, _ = newcomer
    by_header = acting(user).get("/api/me")
    by_body = platform.post("/api/platform/provision?plan=true", {"userId": user})
    by_query = platform.get("/api/platform/status", params={"userId": user})
    assert by_header["user_id"] == user
    assert by_body["plan"] is True
    assert by_query["userId"] == user


@pytest.mark.mission("A2.8")
def test_a2_8_a_browser_gets_no_internal_key_and_needs_none(stack: WholeStack, ann: Person) -> None:
    browser = stack.caller(cookie=f"hatchery_session={stack.token(ann.user)}")
    pages = ["/", "/docs", "/openapi.json", "/api/me", "/api/openclaw/instance", "/api/openclaw/sessions"]
    shown = "\n".join(browser.request("GET", page).text for page in pages)
    keys = [stack.key(name) for name in ("internal-api-key", "oa-internal-key", "runtime-service")]
    assert browser.get("/api/me")["via"] == "cookie"
    assert not [key for key in keys if key in shown]
    hop = stack.caller(port=1, authorization=f"Bearer {stack.token(ann.user)}", x_oa_tenant_key=tenant_key(ann.user))
    refusal(hop.request("GET", "/v1/status"), 401, "unauthorized")


@pytest.mark.mission("A3.1")
def test_a3_1_the_status_shows_gateway_backup_type_and_version(ann: Person) -> None:
    status = ann.runtime.get("/v1/status")
    assert status["gateway"] == {"state": "ready", "version": ann.instance["gateway_version"]}
    assert status["instance_id"] == ann.instance["instance_id"]
    assert status["machine_id"] == ann.instance["machine_id"]
    assert status["instance_type"] == "standard"
    assert status["last_backup"] is None
    assert status["last_backup_reason"]


@pytest.mark.mission("A3.2")
def test_a3_2_the_gateway_restarts_in_its_machine(stack: WholeStack, ann: Person) -> None:
    record = stack.root_of(ann.instance["instance_id"]) / "controller.json"
    before = json.loads(record.read_text())
    answer = ann.runtime.request("POST", "/v1/gateway/restart", json={"reason": "asked for by a test"})
    assert answer.status_code == 202

    def renewed() -> bool:
        now = json.loads(record.read_text())
        return now["gateway_pid"] not in (None, before["gateway_pid"]) and now["pid"] == before["pid"]

    eventually(renewed)
    eventually(lambda: ann.runtime.get("/v1/status")["gateway"]["state"] == "ready")
    eventually(lambda: ann.site.instance()["status"] == "ready")


@pytest.mark.mission("A3.4")
def test_a3_4_devices_are_listed_and_let_in(stack: WholeStack, ann: Person) -> None:
    waiting = {"requestId": "req-1", "deviceId": "dev-1", "displayName": "a phone", "token": "hidden"}
    devices = stack.root_of(ann.instance["instance_id"]) / "state" / "fake-devices.json"
    devices.write_text(json.dumps({"pending": [waiting], "paired": []}))

    listed = ann.runtime.get("/v1/devices")
    assert [device["requestId"] for device in listed["pending"]] == ["req-1"]
    assert "hidden" not in json.dumps(listed)
    ann.runtime.post("/v1/devices/req-1/approve")
    after = ann.runtime.get("/v1/devices")
    assert after["pending"] == []
    assert [device["deviceId"] for device in after["paired"]] == ["dev-1"]
    refusal(ann.runtime.request("POST", "/v1/devices/req-1/approve"), 404, "not_found")


@pytest.mark.mission("A3.5")
def test_a3_5_tools_run_under_the_policy_of_the_gateway(ann: Person) -> None:
    listed = ann.runtime.post("/v1/tools/invoke", {"tool": "sessions_list", "args": {}})
    assert ann.thread["session_key"] in json.dumps(listed)
    denied = ann.runtime.request("POST", "/v1/tools/invoke", json={"tool": "exec", "args": {"command": "id"}})
    refusal(denied, 404, "tool_not_available")
    foreign = {"tool": "sessions_list", "headers": {"authorization": "Bearer stolen"}}
    refusal(ann.runtime.request("POST", "/v1/tools/invoke", json=foreign), 400)


@pytest.mark.mission("A3.6")
def test_a3_6_a_session_can_be_listed_read_and_sent_to(ann: Person) -> None:
    key = "agent:main:acceptance-send"
    body = {"message": "to this session", "idempotencyKey": "acceptance-send-1"}
    answer = ann.runtime.post(f"/v1/sessions/{key}/send", body)
    assert "to this session" in answer["text"]
    assert key in [session["key"] for session in ann.runtime.get("/v1/sessions")["sessions"]]
    again = ann.runtime.post(f"/v1/sessions/{key}/send", body)
    assert again["text"] == answer["text"]
    messages = ann.runtime.get(f"/v1/sessions/{key}/history")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"], "the same key sends once"


@pytest.mark.mission("A3.7")
def test_a3_7_responses_are_streamed_through(ann: Person) -> None:
    body = {"model": "openclaw", "input": "stream this", "stream": True}
    seen = list(ann.runtime.follow("/v1/responses", method="POST", body=body))
    names = [one.event for one in seen]
    assert "response.created" in names
    assert "response.completed" in names
    assert "stream this" in "".join(one.data["delta"] for one in seen if one.event == "response.output_text.delta")
    whole = ann.runtime.post("/v1/responses", {"model": "openclaw", "input": "and whole"})
    assert whole["status"] == "completed"


@pytest.mark.mission("A3.11")
def test_a3_11_every_endpoint_needs_the_service_token(stack: WholeStack, ann: Person, bob: Person) -> None:
    tenant = tenant_key(ann.user)
    others = runtime_service_token(bytes.fromhex(stack.key("runtime-service")), tenant_key(bob.user))
    for headers in (
        {"x_oa_tenant_key": tenant},
        {"x_oa_tenant_key": tenant, "x_openagents_service_token": "wrong"},
        {"x_oa_tenant_key": tenant, "x_openagents_service_token": others},
        {"x_openagents_service_token": others},
    ):
        caller = stack.caller(port=1, **headers)
        for method, path in _ENDPOINTS:
            refusal(caller.request(method, path, json={} if method == "POST" else None), 401, "unauthorized")


@pytest.mark.mission("A3.12")
def test_a3_12_the_runtime_api_is_internal(stack: WholeStack, ann: Person) -> None:
    services = psutil.Process(stack.state["parts"]["services"]["pid"])
    ports = {stack.port + 1, stack.port + 2}
    listening = [one.laddr for one in services.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    bound = {place.ip for place in listening if place.port in ports}
    assert {place.port for place in listening} >= ports
    assert bound == {"127.0.0.1"}
    answer = ann.runtime.request("GET", "/v1/status", headers={"Origin": "https://site.example"})
    assert "access-control-allow-origin" not in answer.headers, "no browser page may read it"
    refusal(ann.site.request("GET", "/v1/status"), 404, "not_found")
    refusal(ann.site.request("GET", "/api/v1/status"), 404, "not_found")


@pytest.mark.mission("A3.13")
def test_a3_13_the_tenant_key_chooses_the_own_machine(ann: Person, bob: Person) -> None:
    found = [one.runtime.get("/v1/status")["instance_id"] for one in (ann, bob)]
    assert found == [ann.instance["instance_id"], bob.instance["instance_id"]]
    crossed = ann.runtime.request("GET", "/v1/status", headers={"x-oa-instance-id": bob.instance["instance_id"]})
    refusal(crossed, 404)
    named = ann.runtime.request("GET", "/v1/status", headers={"x-oa-instance-id": ann.instance["instance_id"]})
    assert data_of(named)["instance_id"] == ann.instance["instance_id"]
