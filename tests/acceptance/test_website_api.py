"""The website's door (A1): instance, credits, chat, sessions, envelope, errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from people import SITE, Person
from visitor import Visitor, data_of, refusal, turn_of
from whole_stack import WholeStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_PREFIXED = re.compile(r"^[a-z]+( [A-Za-z_()-]+)+: \S.*$")
_READS = (
    "/api/openclaw", "/api/openclaw/instance", "/api/openclaw/instances", "/api/openclaw/sessions",
    "/api/openclaw/billing/summary", "/api/threads", "/api/me",
)  # fmt: skip


@pytest.mark.mission("A1.1")
def test_a1_1_the_index_says_what_there_is(stack: WholeStack) -> None:
    anybody = stack.caller()
    for path in ("/openclaw", "/api/openclaw"):
        index = anybody.get(path)
        assert index["service"] == "hatchery"
        for endpoint in index["endpoints"]:
            assert anybody.request("GET", endpoint).status_code in (401, 405), "listed, so it must exist"


@pytest.mark.mission("A1.2")
def test_a1_2_an_instance_is_a_summary_or_null(newcomer: tuple[str, Visitor], ann: Person) -> None:
    assert newcomer[1].instance() is None
    summary = ann.site.instance()
    assert summary["status"] == "ready"
    assert summary["runtime_name"] == summary["instance_id"]
    assert summary["created_at"] <= summary["last_ready_at"] <= summary["updated_at"]


@pytest.mark.mission("A1.3")
def test_a1_3_create_is_idempotent(newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    first = site.request("POST", "/api/openclaw/instance")
    assert first.status_code == 202
    joined = site.request("POST", "/api/openclaw/instance")
    born, again = data_of(first), data_of(joined)
    assert again["instance_id"] == born["instance_id"]
    assert again["operation_id"] in (born["operation_id"], None)
    site.settled(born["operation"]["operation_id"])
    after = site.request("POST", "/api/openclaw/instance")
    assert after.status_code == 200
    assert data_of(after)["instance_id"] == born["instance_id"]
    assert data_of(after)["status"] == "ready"
    assert len(site.get("/api/openclaw/instances")) == 1


@pytest.mark.mission("A1.9")
def test_a1_9_credits_can_be_read(ann: Person) -> None:
    summary = ann.site.get("/api/openclaw/billing/summary")
    assert summary["granted_micro"] == 5_000_000
    assert summary["balance_micro"] == summary["granted_micro"] - summary["burned_micro"]
    assert summary["lines"][-1]["kind"] == "grant"


@pytest.mark.mission("A1.10")
def test_a1_10_chat_streams_for_a_bearer_and_for_a_server(ann: Person, acting: Callable[[str], Visitor]) -> None:
    for caller in (ann.site, acting(ann.user)):
        body = {"message": "say it back", "sessionKey": "main"}
        seen = list(caller.follow("/api/openclaw/chat", method="POST", body=body))
        assert seen[0].event == "accepted"
        assert seen[-1].event == "run.finished"
        turn = turn_of(seen[1:])
        assert turn.chunks >= 1
        assert "say it back" in turn.text
        assert ann.site.get(f"/api/threads/{seen[0].data['thread_id']}")["session_key"] == "agent:main:main"
    assert ann.said_in("agent:main:main") == ["say it back", "say it back"]


@pytest.mark.mission("A1.12")
def test_a1_12_sessions_and_their_history_can_be_read(ann: Person) -> None:
    keys = [session["key"] for session in ann.site.get("/api/openclaw/sessions")["sessions"]]
    assert ann.thread["session_key"] in keys
    history = ann.site.get(f"/api/openclaw/sessions/{ann.thread['session_key']}/history")["messages"]
    assert [message["role"] for message in history] == ["user", "assistant"]
    assert history[0]["text"] == "good morning"


@pytest.mark.mission("A1.14")
def test_a1_14_a_listed_site_may_send_the_server_headers(stack: WholeStack) -> None:
    headers = ("x-oa-internal-key", "x-oa-user-id", "x-openagents-service-token")

    def preflight(origin: str) -> httpx.Response:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = ", ".join(headers)
        return stack.caller().request("OPTIONS", "/api/openclaw/instance", headers=asked)

    answer = preflight(SITE)
    assert answer.headers["access-control-allow-origin"] == SITE
    assert set(headers) <= {name.strip() for name in answer.headers["access-control-allow-headers"].lower().split(",")}
    assert "access-control-allow-origin" not in preflight("https://elsewhere.example").headers


@pytest.mark.mission("A1.16")
def test_a1_16_a_failure_names_its_step(stack: WholeStack, newcomer: tuple[str, Visitor]) -> None:
    _, site = newcomer
    denied = refusal(stack.caller().request("GET", "/api/openclaw/instance"), 401)
    assert denied["error"].startswith("openclaw getInstance authenticate: ")

    instance_id = site.wish("provision")["instance_id"]
    site.wish("stop")
    shutil.rmtree(stack.root_of(instance_id))
    lost = site.post("/api/openclaw/instance/start")["operation"]
    assert list(site.follow(lost["events_url"]))[-1].event == "failed"
    assert site.get(lost["url"])["error"].startswith("openclaw startInstance: storage_missing: ")

    again = site.post("/api/openclaw/instance")["operation"]
    assert list(site.follow(again["events_url"]))[-1].event == "failed"
    failed = site.get(again["url"])["error"]
    assert failed.startswith("openclaw createInstance provision_instance: storage_missing: ")
    assert site.instance()["status"] == "error"

    deleting = site.delete("/api/openclaw/instance")["operation"]
    busy = site.request("POST", "/api/openclaw/instance")
    if busy.status_code == 409:  # unless it was gone already
        assert busy.json()["error"].startswith("openclaw createInstance get_instance: ")
        assert busy.json()["error_detail"]["operation_id"] == deleting["operation_id"]
    site.settled(deleting["operation_id"])


@pytest.mark.mission("A1.17")
def test_a1_17_every_endpoint_answers_in_the_envelope(stack: WholeStack, ann: Person) -> None:
    anybody = stack.caller()
    paths: dict[str, Any] = anybody.request("GET", "/openapi.json").json()["paths"]
    assert len(paths) > 20
    for path, methods in paths.items():
        for method in methods:
            given = re.sub(r"\{[^}]*\}", "op_x", path)
            body = anybody.request(method.upper(), given, json={} if method == "post" else None).json()
            assert isinstance(body["ok"], bool), path
            assert ("data" in body) is body["ok"], path
    for path in _READS:
        assert ann.site.request("GET", path).json()["ok"] is True
    refusal(anybody.request("GET", "/nowhere"), 404, "not_found")
    refusal(anybody.request("DELETE", "/api/me"), 405, "method_not_allowed")
    refusal(ann.site.request("POST", "/api/threads", content=b"{", headers={"content-type": "application/json"}), 422)
    refusal(ann.site.request("POST", "/api/threads", json={"title": "x" * 300_000}), 413, "body_too_large")


@pytest.mark.mission("A1.18")
def test_a1_18_a_server_needs_the_key_and_a_user(stack: WholeStack) -> None:
    key = stack.key("oa-internal-key")
    for headers in (
        {"x_oa_user_id": "ann"},
        {"x_oa_internal_key": "wrong", "x_oa_user_id": "ann"},
        {"x_oa_internal_key": key},
        {"x_oa_internal_key": key, "x_oa_user_id": ""},
    ):
        refusal(stack.caller(**headers).request("GET", "/api/openclaw/instance"), 401, "unauthenticated")


@pytest.mark.mission("A1.19")
def test_a1_19_no_secret_leaves(stack: WholeStack, ann: Person, platform: Visitor) -> None:
    texts = [ann.site.request("GET", path).text for path in _READS]
    texts.append(platform.request("GET", "/api/platform/status", params={"userId": ann.user}).text)
    shown = "\n".join(texts)
    for name in ("runtime-service", "machine-identity", "controller", "model-token", "internal-api-key", "website-jwt"):
        assert stack.key(name) not in shown
    assert not re.search(r'"\w*(_encrypted|_iv|_alg|secret|password|private_key|service_token)"', shown)


@pytest.mark.mission("A1.21")
def test_a1_21_a_server_onboards_its_user(
    stack: WholeStack, newcomer: tuple[str, Visitor], acting: Callable[[str], Visitor]
) -> None:
    user, _ = newcomer
    server = acting(user)
    assert server.get("/openclaw/instance") is None
    accepted = server.post("/openclaw/instance")
    server.settled(accepted["operation"]["operation_id"])
    assert server.get("/openclaw/instance")["status"] == "ready"
    stack.sql("api", "UPDATE users SET access_enabled = false WHERE user_id = $1", user)
    for method in ("GET", "POST"):
        refusal(server.request(method, "/openclaw/instance"), 403, "access_required")
    stack.sql("api", "UPDATE users SET access_enabled = true WHERE user_id = $1", user)


@pytest.mark.mission("AC12")
def test_ac12_every_failure_is_one_unambiguous_line(stack: WholeStack, ann: Person, bob: Person) -> None:
    failures = [
        stack.caller().request("GET", "/api/openclaw/instance"),
        stack.caller(x_internal_api_key="wrong").request("POST", "/api/platform/start", json={"userId": "a"}),
        ann.site.request("POST", "/api/openclaw/instance", json={"name": "Not a name"}),
        ann.site.request("POST", "/api/openclaw/instance/stop", params={"name": "nothing-there"}),
        ann.site.request("GET", f"/api/threads/{bob.thread['thread_id']}"),
        ann.site.request("GET", "/api/operations/op_nothing"),
        ann.site.request("POST", "/api/openclaw/chat", json={}),
        ann.site.request("GET", "/api/openclaw/sessions", params={"name": "nothing-there"}),
        ann.site.request("POST", "/api/openclaw/chat", json={"message": "x" * 300_000}),
        ann.site.request("POST", "/api/openclaw/instance/stop", json={"message": "x" * 300_000}),
    ]
    lines = [refusal(answer, answer.status_code)["error"] for answer in failures]
    assert all(400 <= answer.status_code < 500 for answer in failures)
    for line in lines:
        assert _PREFIXED.match(line), line
        assert "\n" not in line
    assert len(set(lines)) == len(lines), "each says what it was"
    assert [answer.status_code for answer in failures[-2:]] == [413, 413]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["openclaw chat", "openclaw stopInstance"]
