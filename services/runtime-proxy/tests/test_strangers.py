"""Another user listens where a stopped machine did: nothing secret reaches him, and the caller learns what is wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.peers import own_uid
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.stranger import POSSIBLE, stranger
from hatchery_runtime_proxy.adapters.controller import HttpControllers
from hatchery_runtime_proxy.handlers.probe import machine_of, probe_gateway
from hatchery_runtime_proxy.ports import ControllerUnreachable, GatewayUnreachable, Identity, Machine
from proxy_stage import ANN, KEY, Proxy

needs_root = pytest.mark.skipif(not POSSIBLE, reason="only root can be another user")


async def probe(proxy: Proxy) -> ProbeResponse:
    request = ProbeRequest(tenant=ANN, instance_id="ins_ann", machine_id="mch_ann", route_version=1)
    return await probe_gateway(request, table=proxy.table, gateways=proxy.gateways)


async def streamed(proxy: Proxy, machine: Machine) -> None:
    async with proxy.gateways.stream(machine, "/v1/responses", b"{}", {}) as answer:
        assert answer.status == 200


CALLS: dict[str, Callable[[Proxy, Machine], Awaitable[object]]] = {
    "ready": lambda proxy, machine: proxy.gateways.ready(machine),
    "hello": lambda proxy, machine: proxy.gateways.hello(machine, Identity.OWNER),
    "call": lambda proxy, machine: proxy.gateways.call(machine, "status", {}),
    "post": lambda proxy, machine: proxy.gateways.post(machine, "/tools/invoke", {}, {}),
    "stream": streamed,
}


async def test_a_gateway_of_the_expected_user_is_spoken_to(proxy: Proxy) -> None:
    proxy.route(endpoint_uid=own_uid())
    assert (await probe(proxy)).stage is ProbeStage.DONE
    answer = await proxy.runtime.get("/v1/status", headers=proxy.headers())
    assert answer.json()["data"]["gateway"]["version"]


@needs_root
@pytest.mark.parametrize("name", CALLS)
async def test_no_call_tells_a_stranger_anything(proxy: Proxy, name: str) -> None:
    machine = machine_of(proxy.route(endpoint_uid=own_uid()))
    await proxy.machine.stop()
    with stranger([urlsplit(machine.endpoint).port or 0]) as he:
        with pytest.raises(GatewayUnreachable, match="another program answers"):
            await CALLS[name](proxy, machine)
        assert he.heard() == b""


@needs_root
async def test_the_probe_and_the_owner_hear_that_the_gateway_cannot_be_reached(proxy: Proxy) -> None:
    machine = machine_of(proxy.route(endpoint_uid=own_uid()))
    await proxy.machine.stop()
    with stranger([urlsplit(machine.endpoint).port or 0]) as he:
        found = await probe(proxy)
        assert (found.ok, found.stage) == (False, ProbeStage.READY)
        assert "another program answers" in (found.detail or "")
        answer = await proxy.runtime.get("/v1/sessions", headers=proxy.headers())
        assert (answer.status_code, answer.json()["error_detail"]["code"]) == (502, "gateway_unreachable")
        assert he.heard() == b""


@needs_root
async def test_a_token_of_a_controller_is_told_to_its_user_alone() -> None:
    controllers, port = HttpControllers(KEY), free_port()
    machine = Machine("mch_1", "http://unused", f"http://127.0.0.1:{port}", controller_uid=own_uid())
    with stranger([port]) as he:
        with pytest.raises(ControllerUnreachable, match="another program"):
            await controllers.state(machine)
        with pytest.raises(ControllerUnreachable, match="another program"):
            await controllers.restart_gateway(machine, "because")
        assert he.heard() == b""
    await controllers.close()
