"""The adapter of the runtime API, against what runtime-proxy answers."""

from __future__ import annotations

import httpx
import pytest
from hatchery_api.adapters.runtime import HttpRuntime
from hatchery_api.domain.errors import RuntimeRefused, RuntimeUnavailable
from hatchery_common.secrets import runtime_service_token

KEY = b"k" * 32


def runtime(handler):
    return HttpRuntime("http://proxy", KEY, transport=httpx.MockTransport(handler))


async def test_the_tenant_is_proven_and_the_instance_named():
    def answer(request):
        assert request.headers["x-openagents-service-token"] == runtime_service_token(KEY, "t1")
        assert (request.headers["x-oa-tenant-key"], request.headers["x-oa-instance-id"]) == ("t1", "ins_1")
        assert request.url.raw_path == b"/v1/sessions/agent%3Amain%2Fx/history?limit=7"
        return httpx.Response(200, json={"ok": True, "data": {"messages": []}})

    assert await runtime(answer).history("t1", "ins_1", "agent:main/x", 7) == {"messages": []}


async def test_a_refusal_keeps_its_code_and_loses_its_prefix():
    body = {"ok": False, "error": "openclaw runtime: it is stopped", "error_detail": {"code": "instance_not_running"}}
    with pytest.raises(RuntimeRefused) as refused:
        await runtime(lambda _: httpx.Response(503, json=body)).sessions("t1", "ins_1")
    assert (refused.value.remote_code, refused.value.message) == ("instance_not_running", "it is stopped")


@pytest.mark.parametrize("response", [httpx.Response(502, text="bad gateway"), httpx.Response(200, json=[1])])
async def test_what_is_no_envelope_is_no_answer(response):
    with pytest.raises(RuntimeUnavailable, match=str(response.status_code)):
        await runtime(lambda _: response).sessions("t1", "ins_1")


async def test_silence_is_no_answer():
    def silent(request):
        raise httpx.ConnectTimeout("late", request=request)

    with pytest.raises(RuntimeUnavailable, match="ConnectTimeout"):
        await runtime(silent).sessions("t1", "ins_1")
