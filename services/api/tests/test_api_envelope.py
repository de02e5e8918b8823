"""Every answer is an envelope, above all the bad ones."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from hatchery_api.domain.secrecy import without_secrets
from hatchery_common.bus.errors import BusUnavailable, RemoteError
from hatchery_common.errors import DependencyUnavailable


def assert_failure(answer, status, code):
    assert answer.status_code == status
    body = answer.json()
    assert body["ok"] is False
    assert "\n" not in body["error"]
    assert body["error_detail"]["code"] == code
    assert "data" not in body
    return body


async def test_unknown_paths_and_methods(world):
    assert_failure(await world.client.get("/nowhere"), 404, "not_found")
    assert_failure(await world.client.get("/api/threads/"), 404, "not_found")
    answer = await world.client.patch("/api/openclaw/instance")
    assert_failure(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/openclaw/instance", b"{"),
        ("/api/openclaw/instance", b'{"name": "Not A Name"}'),
        ("/api/openclaw/instance", b'{"name": 7}'),
        ("/api/openclaw/instance", b"[]"),
        ("/api/openclaw/instance", b'"\\ud800"'),
        ("/api/openclaw/chat", b'{"message": ""}'),
        ("/api/openclaw/chat", b'{"message": "a\\u0000b"}'),
        ("/api/openclaw/chat", b'{"message": "\\ud800"}'),
        ("/api/openclaw/chat", b'{"message": "a", "threadId": "../x"}'),
        ("/api/threads", b'{"title": "a\\u0000"}'),
        ("/api/openclaw/chat", b"\xff\xfe"),
    ],
)
async def test_malformed_bodies(world, path, body):
    headers = {**world.bearer(), "Content-Type": "application/json"}
    answer = await world.client.post(path, headers=headers, content=body)
    assert answer.status_code in {400, 422}
    assert answer.json()["ok"] is False
    assert "ud800" not in answer.text


async def test_oversize_bodies_declared_or_not(world):
    headers = {**world.bearer(), "Content-Type": "application/json"}
    big = b'{"message": "' + b"a" * 300_000 + b'"}'
    assert_failure(await world.client.post("/api/openclaw/chat", headers=headers, content=big), 413, "body_too_large")

    async def dripping():
        for _ in range(300):
            yield b"a" * 1024

    answer = await world.client.post("/api/openclaw/chat", headers=headers, content=dripping())
    assert_failure(answer, 413, "body_too_large")
    assert world.calls.submitted == []


async def test_a_body_too_large_is_refused_by_name_wherever_it_is_sent(world):
    for path, name in (
        ("/openclaw/instance", "openclaw createInstance"),
        ("/api/openclaw/instance/start", "openclaw startInstance"),
        ("/api/platform/provision", "platform provision"),
    ):
        answer = await world.client.post(path, content=b" " * 300_000)
        body = assert_failure(answer, 413, "body_too_large")
        assert body["error"].startswith(f"{name}: the body exceeds 262144 bytes")
        assert answer.headers["connection"] == "close"
    assert not world.store.sent


async def test_a_dependency_that_is_down_says_when_to_retry(world):
    world.calls.fail = BusUnavailable("nobody answers rpc.billing.summary.v1")
    answer = await world.client.get("/openclaw/billing/summary", headers=world.bearer())
    body = assert_failure(answer, 503, "bus_unavailable")
    assert body["error"].startswith("openclaw getBillingSummary billing: ")
    assert answer.headers["retry-after"] == "2"


async def test_another_services_refusal_is_passed_on(world):
    world.calls.fail = RemoteError("not_found", "there is no such thread")
    assert_failure(await world.client.get("/api/threads/thd_abc", headers=world.bearer()), 404, "not_found")
    world.calls.fail = RemoteError("some_new_code", "odd")
    assert_failure(await world.client.get("/api/threads/thd_abc", headers=world.bearer()), 502, "some_new_code")


async def test_a_bug_of_ours_is_named_as_one_and_tells_nothing(world):
    world.calls.fail = RuntimeError("password=hunter2 at /srv/secret")
    answer = await world.client.get("/api/threads", headers=world.bearer())
    assert_failure(answer, 500, "internal")
    assert "hunter2" not in answer.text


async def test_a_failed_look_at_the_instance_names_no_step(world):
    await world.client.get("/api/me", headers=world.bearer())

    async def away(tenant, name):
        raise DependencyUnavailable("Postgres does not answer")

    read = world.store.read

    @asynccontextmanager
    async def broken():
        async with read() as reads:
            reads.claims.find = away
            yield reads

    world.store.read = broken
    body = assert_failure(
        await world.client.get("/openclaw/instance", headers=world.bearer()), 503, "dependency_unavailable"
    )
    assert body["error"] == "openclaw getInstance: Postgres does not answer"
    assert "step" not in body["error_detail"]


async def test_a_session_key_may_hold_slashes(world):
    await world.client.post("/api/openclaw/instance", headers=world.bearer())
    for given in ("agent:main:a/b", "agent%3Amain%3Aa%2Fb", "a//b/history"):
        answer = await world.client.get(f"/openclaw/sessions/{given}/history?limit=7", headers=world.bearer())
        key = given.replace("%3A", ":").replace("%2F", "/")
        assert answer.json()["data"]["messages"] == [{"role": "user", "text": f"{key}/7"}]


async def test_errors_carry_the_seeds_prefixes(world):
    answer = await world.client.delete("/openclaw/instance", headers=world.bearer())
    body = assert_failure(answer, 404, "no_instance")
    assert body["error"] == "openclaw deleteInstance: there is no instance named default"
    answer = await world.client.post("/api/platform/stop", json={"userId": "u"})
    assert answer.json()["error"].startswith("platform stop authenticate: x-internal-api-key is missing or wrong")


async def test_secrets_are_stripped_from_what_is_passed_on(world):
    await world.client.post("/api/openclaw/instance", headers=world.bearer())
    for path in ("/api/openclaw/sessions", "/openclaw/sessions/main/history"):
        answer = await world.client.get(path, headers=world.bearer())
        assert answer.status_code == 200
        assert "tok-very-secret" not in answer.text
    assert (await world.client.get("/api/openclaw/sessions", headers=world.bearer())).json()["data"] == {
        "sessions": [{"key": "main", "totalTokens": 12}]
    }


def test_only_secret_texts_are_stripped():
    value = {"apiKey": "k", "tokens": 3, "service_token_encrypted": "x", "list": [{"password": "p", "text": "token"}]}
    assert without_secrets(value) == {"tokens": 3, "list": [{"text": "token"}]}


async def test_a_given_model_key_is_neither_kept_nor_echoed(world):
    key = {"x-internal-api-key": "platform-key-0123456789"}
    body = {"userId": "u", "kilocodeApiKey": "sk-super-secret-value"}
    answer = await world.client.post("/api/platform/provision", headers=key, json=body)
    assert answer.status_code == 202
    assert answer.json()["data"]["warnings"]
    assert "sk-super" not in answer.text
    assert "sk-super" not in repr(world.store.data) + repr(world.store.sent)


async def test_preflight_allows_the_seeds_headers(open_world):
    async with open_world(allowed_origins="https://site.example") as world:
        asked = "x-oa-internal-key,x-oa-user-id,x-openagents-service-token"
        headers = {
            "Origin": "https://site.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        }
        answer = await world.client.options("/api/openclaw/instance", headers=headers)
        assert answer.status_code == 200
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert all(name in allowed for name in asked.split(","))
        headers["Origin"] = "https://evil.example"
        answer = await world.client.options("/api/openclaw/instance", headers=headers)
        assert "access-control-allow-origin" not in answer.headers


async def test_the_document_names_every_operation_once(world):
    document = (await world.client.get("/openapi.json")).json()
    operations = [one for item in document["paths"].values() for one in item.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    assert all(one["summary"] and one["tags"] for one in operations)
    assert document["paths"]["/api/platform/provision"]["post"]["security"] == [{"platformKey": []}]
    assert "/openclaw/instance" not in document["paths"]
    page = await world.client.get("/docs")
    assert "createInstance" in page.text
    assert "http" not in page.text.replace("HTTP", "")
