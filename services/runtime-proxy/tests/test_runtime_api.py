"""The runtime API against the stand-in gateway: who may ask, and what is answered at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hatchery_common.contracts.routes import RouteState
from proxy_stage import ANN, BOB, Proxy


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-oa-tenant-key": ANN},
        {"x-oa-tenant-key": ANN, "x-openagents-service-token": "guess"},
        {"x-oa-tenant-key": "*", "x-openagents-service-token": "guess"},
    ],
)
async def test_every_path_needs_the_service_token(proxy: Proxy, headers: dict[str, str]) -> None:
    for path in ("/v1/status", "/v1/devices", "/v1/sessions", "/v1/sessions/x/history"):
        answer = await proxy.runtime.get(path, headers=headers)
        body = answer.json()
        assert (answer.status_code, body["ok"], body["error_detail"]["code"]) == (401, False, "unauthorized")


async def test_a_tenants_token_opens_no_other_tenant(proxy: Proxy) -> None:
    mixed = {**proxy.headers(BOB), "x-oa-tenant-key": ANN}
    assert (await proxy.runtime.get("/v1/status", headers=mixed)).status_code == 401
    foreign = proxy.headers(BOB, **{"x-oa-instance-id": "ins_ann"})
    answer = await proxy.runtime.get("/v1/status", headers=foreign)
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (404, "instance_unknown")
    assert (await proxy.runtime.get("/v1/status", headers=proxy.headers(BOB))).status_code == 404


async def test_a_model_token_is_refused_here(proxy: Proxy) -> None:
    assert (await proxy.runtime.get("/v1/status", headers=proxy.bearer())).status_code == 401


async def test_unknown_paths_and_methods_answer_in_the_envelope(proxy: Proxy) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/v1/status", 405)):
        answer = await proxy.runtime.request(method, path, headers=proxy.headers())
        assert (answer.status_code, answer.json()["ok"]) == (status, False)


async def test_bad_queries_answer_in_the_envelope(proxy: Proxy) -> None:
    for path in ("/v1/sessions?limit=many", "/v1/sessions?limit=0", "/v1/sessions/a/b/history?limit=9999"):
        answer = await proxy.runtime.get(path, headers=proxy.headers())
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (400, "invalid_input")
    answer = await proxy.runtime.get("/v1/sessions/agent:main:odd%2Fkey/history", headers=proxy.headers())
    assert answer.json()["data"]["session_key"] == "agent:main:odd/key"


async def test_status_tells_gateway_version_and_why_there_is_no_backup(proxy: Proxy) -> None:
    data = (await proxy.runtime.get("/v1/status", headers=proxy.headers())).json()["data"]
    assert data["gateway"] == {"state": "ready", "version": "2026.9.6"}
    assert (data["instance_type"], data["last_backup"]) == ("standard", None)
    assert data["last_backup_reason"]


@pytest.mark.parametrize("state", [RouteState.STARTING, RouteState.STOPPING, RouteState.STOPPED])
async def test_only_a_running_instance_is_spoken_to(proxy: Proxy, state: RouteState) -> None:
    proxy.route(state=state)
    answer = await proxy.runtime.get("/v1/devices", headers=proxy.headers())
    detail = answer.json()["error_detail"]
    assert (answer.status_code, detail["code"], detail["state"]) == (503, "instance_not_running", state.value)
    status = await proxy.runtime.get("/v1/status", headers=proxy.headers())
    assert (status.status_code, status.json()["data"]["gateway"]["state"]) == (200, state.value)


async def test_a_gateway_that_is_gone_is_a_typed_error(proxy: Proxy) -> None:
    await proxy.machine.stop()
    answer = await proxy.runtime.get("/v1/devices", headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_unreachable")
    assert (await proxy.runtime.get("/v1/status", headers=proxy.headers())).json()["data"]["gateway"][
        "state"
    ] == "unreachable"


async def test_restart_goes_to_the_controller(proxy: Proxy) -> None:
    answer = await proxy.runtime.post("/v1/gateway/restart", headers=proxy.headers(), json={"reason": "try"})
    assert (answer.status_code, proxy.controllers.restarts) == (202, [("mch_ann", "try")])


async def test_devices_are_approved_and_rejected(proxy: Proxy) -> None:
    proxy.machine.seed_devices("r1", "r2")
    listed = (await proxy.runtime.get("/v1/devices", headers=proxy.headers())).json()["data"]
    assert [row["requestId"] for row in listed["pending"]] == ["r1", "r2"]
    assert "hush" not in json.dumps(listed), "a device's token left the runtime"
    for request_id, verb in (("r1", "approve"), ("r2", "reject")):
        answer = await proxy.runtime.post(f"/v1/devices/{request_id}/{verb}", headers=proxy.headers())
        assert (answer.status_code, answer.json()["data"]["requestId"]) == (200, request_id)
    answer = await proxy.runtime.post("/v1/devices/r1/approve", headers=proxy.headers())
    assert (answer.status_code, answer.json()["error_detail"]["code"]) == (404, "not_found")


async def test_senders_of_a_channel_are_approved(proxy: Proxy) -> None:
    proxy.machine.seed_pairings({"requestId": "p1", "channel": "telegram", "accountId": "default", "senderId": "7"})
    listed = (await proxy.runtime.get("/v1/pairing/telegram", headers=proxy.headers())).json()["data"]
    assert [row["senderId"] for row in listed["requests"]] == ["7"]
    assert (await proxy.runtime.get("/v1/pairing/slack", headers=proxy.headers())).json()["data"]["requests"] == []
    for expected in (200, 404):
        path = "/v1/pairing/telegram/approve"
        assert (
            await proxy.runtime.post(path, headers=proxy.headers(), json={"requestId": "p1"})
        ).status_code == expected


async def test_tools_are_invoked_under_the_gateways_policy(proxy: Proxy) -> None:
    async def invoke(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = await proxy.runtime.post("/v1/tools/invoke", headers=proxy.headers(), json=body)
        return answer.status_code, answer.json()

    status, body = await invoke({"tool": "sessions_list", "args": {}})
    assert (status, body["data"]["details"]["count"]) == (200, 0)
    status, body = await invoke({"tool": "exec", "args": {"command": "id"}})
    assert (status, body["error_detail"]["code"]) == (404, "tool_not_available")
    status, body = await invoke({"tool": "sessions_history", "args": {}})
    assert (status, body["error_detail"]["code"]) == (400, "tool_rejected")
    status, body = await invoke({"tool": "sessions_list", "dryRun": True})
    assert body["data"]["dry_run"] is True
    for bad in ({}, {"tool": 3}, {"tool": "x", "surprise": 1}, {"tool": "x", "headers": {"authorization": "y"}}):
        assert (await invoke(bad))[0] == 400


async def test_bad_bodies_are_typed(proxy: Proxy) -> None:
    path = "/v1/sessions/s/send"
    for content, status, code in (
        (b"{", 400, "invalid_input"),
        (b"[]", 400, "invalid_input"),
        (b'{"message":"","idempotencyKey":"run_1234"}', 400, "invalid_input"),
        (b'{"message":"x"}', 400, "invalid_input"),
        (b'{"message":"' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
    ):
        answer = await proxy.runtime.post(path, headers=proxy.headers(), content=content)
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (status, code)
